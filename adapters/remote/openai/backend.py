"""The ``openai`` backend: models that an OpenAI-compatible endpoint serves, scored as they are.

There is nothing to merge here: a recipe must be one of the served models (weight 1, all others 0) or the
base model. The same language model stands behind ensembles and servers of merged LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mergefront.adapters.chat_templates import TemplateReader
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import (
    BEGUN,
    Chat,
    Generation,
    GenerationRequest,
    LogLikelihood,
    ScoringRequest,
    Verb,
)
from mergefront.adapters.remote.drawing import drawing
from mergefront.adapters.remote.http.client import HttpClient, all_of
from mergefront.adapters.remote.identity import ANSWER_TOKENS, QUESTIONS, Recognition
from mergefront.adapters.remote.openai.answers import USED_UP
from mergefront.adapters.remote.openai.echo import NoLogProbabilitiesError
from mergefront.adapters.remote.openai.token_count import token_counter
from mergefront.adapters.remote.openai.tokenizer_files import TokenizerFiles
from mergefront.adapters.remote.openai.wire import NONE_IN_CHAT, OpenAIWire
from mergefront.adapters.remote.scales import single_model
from mergefront.adapters.remote.server_backend import AppliedOnServer, Connected
from mergefront.adapters.remote.settings import MemberSection, OpenAISection
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.adapters.thoughts import answer_of
from mergefront.optimizer.errors import EvaluationError, SearchStoppedError, UserError
from mergefront.optimizer.recipes.recipe import Recipe

_SENDS_TEXTS = (
    "mode: completions sends raw texts; use mode: chat, or name the model's tokenizer (tokenizer: FOLDER), whose chat "
    "template then writes them"
)
_ANSWERS_ALL_THE_SAME = (USED_UP, "refusal")
"""Why a sound model may have no answer to a question with room for a few tokens: it reasons, or it is particular."""


class OpenAIModel:
    """A ``LanguageModel``: one served model; by ``tokenizer`` conversations are written for a completions route."""

    def __init__(self, wire: OpenAIWire, tokenizer: TokenizerFiles | None = None) -> None:
        self.wire = wire
        self._chats = None if tokenizer is None else TemplateReader(tokenizer)
        self._begin = "" if tokenizer is None else tokenizer.special_tokens_map.get("bos_token", "")

    @classmethod
    def served(cls, client: HttpClient, name: str, settings: OpenAISection | MemberSection, root: Path) -> OpenAIModel:
        """The model called ``name``, asked as ``settings`` say; relative paths start from ``root``."""
        count = None if settings.tokenizer is None else token_counter(root / settings.tokenizer)
        wire = OpenAIWire(
            client, name, mode=settings.mode, system=settings.system, request=settings.request, count=count
        )
        renders = settings.mode == "completions" and settings.tokenizer is not None
        return cls(wire, TokenizerFiles.read(root / str(settings.tokenizer)) if renders else None)

    def recognised(self, name: str, recognition: Recognition) -> OpenAIModel:
        """This model, once it is known whose answers are kept for it; ``recognition`` has it by ``name``."""
        if self.wire.state is None:
            client = self.wire.client
            model = self.wire.model
            identity = recognition.identify(name, client.server, client.cache, self.answers, model=model)
            client.identify(identity.server)
            self.wire.state = "" if identity.number is None else f"#{identity.number}"
        return self

    def answers(self) -> list[Any]:
        """What tells the model from others of its name: its answers to fixed questions, and the log-probabilities of
        the first of them where it gives any. Nothing where it draws its answers."""
        if self.wire.is_drawing:
            return []
        asked = all_of(self.wire.generate(one, ANSWER_TOKENS, (), cached=False) for one in QUESTIONS)
        found: list[Any] = [one.text or one.unanswered for one in self.wire.client.run(asked)]
        if self.wire.mode == "completions":
            with suppress(EvaluationError):
                echoed = self.wire.client.run(self.wire.echo(QUESTIONS[0], cached=False))
                found.append([one.logprob for one in echoed if one.logprob is not None])
        return found

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """By echo; raises ``EvaluationError`` where the endpoint does not give log-probabilities."""
        work = (self.wire.score(*self._texts(request)) for request in requests)
        return self.wire.client.run(all_of(work))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Continuations; in chat mode, answers."""
        return self.wire.client.run(all_of(self._written(request) for request in requests))

    async def _written(self, request: GenerationRequest) -> Generation:
        prompt, thinking = self._prompt(request.prompt), request.thinking
        if thinking is None:
            return await self.wire.generate(prompt, request.most_tokens, request.stop, drawn=drawing(request))
        said = await self.wire.generate(prompt, request.most_tokens, (), drawn=drawing(request))
        if said.unanswered == USED_UP:
            return Generation("", said.tokens, "length", shortened=said.shortened, is_thought=True)
        is_open = isinstance(prompt, str) and thinking.is_open(prompt)
        return answer_of(said, request, is_open=is_open, is_parted=said.is_parted)

    def refusal(self, chat: Chat) -> str:
        """Why this model cannot be put a conversation; nothing where it can."""
        if self.wire.mode == "completions":
            return "" if self._chats is not None else _SENDS_TEXTS
        if chat.is_begun:
            return BEGUN
        if chat.template or chat.today:
            what = "template" if chat.template else "date"
            return f"the endpoint's chat route has a template of its own, which takes no {what}; leave that out of chat"
        if self.wire.system is not None and any(message.role == "system" for message in chat.messages):
            return "backend.system and the conversation's own system message exclude each other; keep one"
        return ""

    def _prompt(self, prompt: str | Chat) -> str | Chat:
        """A prompt as the wire takes it: a completions route gets what the model's template writes."""
        return prompt if isinstance(prompt, str) or self._chats is None else self._rendered(prompt, None)[0]

    def _texts(self, request: ScoringRequest) -> tuple[str, str]:
        if isinstance(request.context, str):
            return request.context, request.continuation
        return self._rendered(request.context, request.continuation)

    def _rendered(self, chat: Chat, answer: str | None) -> tuple[str, str]:
        """Prompt and answer as the model's template writes them, without the begin token that endpoints put there."""
        if self._chats is None:
            raise NoLogProbabilitiesError(NONE_IN_CHAT)
        before, after = self._chats.rendered(chat, answer)
        return before.removeprefix(self._begin), after


class OpenAIBackend(Connected[OpenAISection]):
    """Served models by the recipe's names; a model's reference is its name at the endpoint."""

    kind = "openai"

    def _connect(self, places: ModelPlaces) -> None:
        self.client = self._client(self.settings, f"openai {self.settings.url}")
        references = dict.fromkeys((*self.space.models.values(), self.space.base_model))
        self._models = {
            name: OpenAIModel.served(self.client, name, self.settings, places.root)
            for name in references
            if name is not None
        }

    def apply(self, recipe: Recipe) -> AppliedOnServer:
        """See ``Backend``; raises ``UserError`` for every recipe that is a real merge."""
        name = single_model(recipe)
        if name is None:
            raise UserError(
                "an OpenAI-compatible endpoint serves models as they are and cannot merge them; use backend: ensemble "
                "to mix their answers, or a server that holds LoRAs (llama_server, vllm, merge_service)"
            )
        served = self.space.models[name] if name else self.space.base_model
        if served is None:
            raise UserError("this recipe is the base model; name the served one in merge.base_model")
        return AppliedOnServer(nullcontext(self._models[served].recognised(served, self.recognition)))

    @property
    def reader(self) -> Reader:
        refuses = next(iter(self._models.values())).refusal
        return Reader(is_chat=self.settings.mode == "chat", is_remote=True, refuses_chat=refuses)

    def problems(self, verbs: Sequence[Verb], counts_tokens: bool) -> list[str]:
        return endpoint_problems(self._models, self.recognition, verbs, counts_tokens)

    def proof(self, verbs: Sequence[Verb]) -> str:
        return endpoint_proof(self._models, verbs)


def endpoint_proof(models: Mapping[str, OpenAIModel], verbs: Sequence[Verb]) -> str:
    """What ``endpoint_problems`` has proved where it found none, and what nobody can prove of a served model."""
    tells = {"generate": "answers a plain question", "loglikelihood": "gives log-probabilities of a given text"}
    told = " and ".join(tells[verb] for verb in sorted(verbs) if verb in tells)
    return f"each of {len(models)} served models {told}; that it is the model of its name cannot be proved"


def endpoint_problems(
    models: Mapping[str, OpenAIModel], recognition: Recognition, verbs: Sequence[Verb], counts_tokens: bool
) -> list[str]:
    """Whether each endpoint answers, has log-probabilities if they are needed, and counts tokens if they are.

    An address where nobody answers is tried for one of its models only.
    """
    lines, silent = [], set[str]()
    for name, model in models.items():
        url, label = model.wire.client.url, f"{model.wire.client.url} ({model.wire.model})"
        if url in silent:
            continue
        try:
            problem = _problem(model.recognised(name, recognition), verbs, counts_tokens)
        except SearchStoppedError as error:
            problem = str(error)
        except EvaluationError as error:
            silent |= {url} if error.kind in ("connection", "timeout") else set()
            is_short = error.kind in ("http 404", "http 405", "error answer") and "/v" not in url
            problem = f"{error}{' (addresses of such endpoints mostly end with /v1)' if is_short else ''}"
        lines += [f"{label}: {problem}"] if problem else []
    return lines


def _problem(model: OpenAIModel, verbs: Sequence[Verb], counts_tokens: bool) -> str:
    """What a model that can be reached cannot do; nothing where it can."""
    if "loglikelihood" in verbs:
        model.loglikelihood([ScoringRequest("The capital of France is", " Paris")])
    if "generate" in verbs:
        (answer,) = model.generate([GenerationRequest("The capital of France is", 16)])
        if answer.unanswered not in ("", *_ANSWERS_ALL_THE_SAME):
            return f"it has no answer to a plain question ({answer.unanswered})"
        if counts_tokens and answer.tokens is None:
            return (
                "it does not say how many tokens it writes (usage), which a metric or constraint needs; name the "
                "model's tokenizer in the backend (tokenizer: FOLDER)"
            )
    return ""
