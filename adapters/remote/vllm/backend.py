"""The ``vllm`` backend: LoRAs are merged here, written where a vLLM server reads, loaded and unloaded at run time.

vLLM has no scales: a candidate is a LoRA of its own. Each gets a name and a folder that were never used before,
because vLLM keeps what it read under an old name; it is unloaded before its folder is deleted, because a loaded
LoRA without its folder ends the server.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import (
    BEGUN,
    Chat,
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
    Tokens,
)
from mergefront.adapters.remote.drawing import drawing
from mergefront.adapters.remote.http.client import all_of
from mergefront.adapters.remote.identity import QUESTIONS, STRAYED, furthest
from mergefront.adapters.remote.scales import lora_scales
from mergefront.adapters.remote.server_backend import AppliedOnServer, Connected
from mergefront.adapters.remote.settings import VllmSection
from mergefront.adapters.remote.tokenizer import ServerTokenizer
from mergefront.adapters.remote.vllm.wire import VllmWire, check_room
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.adapters.thoughts import answer_of
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

if TYPE_CHECKING:
    from mergefront.adapters.merging.loras.pool import Factors


class VllmBackend(Connected[VllmSection]):
    """Turns recipes into LoRAs of one vLLM server; a model's reference is its folder, or its name on the Hub.

    A recipe is a weighted sum of whole LoRAs (``task_arithmetic``, ``linear``) or of the methods ``lora_cat``,
    ``lora_svd`` and ``lora_factor``. Connecting raises ``UserError`` when the server is not there, serves no
    base model, or does not take LoRAs at run time.
    """

    kind = "vllm"

    def _connect(self, places: ModelPlaces) -> None:
        from mergefront.adapters.merging.loras.pool import check_factors

        self._loras = {name: places.folder(path) for name, path in self.space.models.items()}
        check_factors(self._loras)
        self._folder = (places.root / self.settings.lora_folder).resolve()
        if not self._folder.is_dir():
            raise UserError(f"backend.lora_folder {self._folder}: there is no such folder; the server has to read it")
        self._numbers = count()
        self._run = token_hex(4)
        self.client = self._client(self.settings)
        self.wire = VllmWire(self.client)
        served = self.client.run(self.wire.models())
        wanted = self.settings.base_model
        found = [(name, longest) for name, longest in served if wanted in (None, name)]
        if not found:
            names = ", ".join(name for name, _ in served) or "none"
            raise UserError(f"backend.base_model: the server serves no model called {wanted!r} (it serves: {names})")
        # The base model comes first; LoRAs that are loaded follow it.
        self.base, longest = found[0]
        self._context = longest if longest is not None else 2048

        is_known = False

        async def encode(text: str, add_special: bool) -> list[int]:
            # Another model of this name may have another tokenizer.
            return await self.wire.tokenize(self.base, text, add_special, cached=is_known)

        self.client.identify(f"vllm {self.base}")
        around_nothing = self.client.run(encode("", True))
        bos = around_nothing[0] if around_nothing else None
        tokenizer = ServerTokenizer(self.client, encode, bos_token=None, bos_token_id=bos, eos_token_id=None)
        self._tokenization = Tokenization(tokenizer, chats=ServerChats(self.wire, self.base))
        seen = self._answers(self.base)
        identity = self.recognition.identify("", f"vllm {self.base}", self.client.cache, lambda: list(seen))
        if identity.number is None:  # as versions before had it
            tokens = self._tokenization.texts(QUESTIONS)[0]
            probed = self.client.run(self.wire.force(self.base, tokens, tokens[0], "", cached=False))
            self.client.identify(f"vllm {self.base} {probed.logprob:.2f}")
        else:
            self.client.identify(f"{identity.server} #{identity.number}")
        is_known = True
        self.proved = self._prove_honest(seen)

    def _answers(self, name: str) -> list[float]:
        """The log-probabilities of the last tokens of a few texts, by the model called ``name`` there."""
        texts = self._tokenization.texts(QUESTIONS)
        asked = [(tokens[:place], tokens[place]) for tokens in texts for place in range(len(tokens))[-2:] if place]
        forced = all_of(self.wire.force(name, known, token, "", cached=False) for known, token in asked)
        return [one.logprob for one in self.client.run(forced)]

    def _prove_honest(self, base: Sequence[float]) -> str:
        """What was proved: every LoRA alone changes the answers, no two names are answered alike, and names keep their
        answers, the base's among them.

        Raises ``UserError`` where it is not so. vLLM takes LoRAs whose modules' names match nothing in its model, and
        leaves them out; names are all that tells its LoRAs apart, and caches of prompts outlive a change of LoRA.
        """
        from mergefront.adapters.merging.loras.pool import merge_loras

        noise = furthest(base, self._answers(self.base))
        alone: dict[str, list[float]] = {}
        first = ""
        with ExitStack() as held:
            for name, path in self._loras.items():
                with ExitStack() as one:
                    # The first stays loaded beside each of the others.
                    kept = one if alone else held
                    loaded = kept.enter_context(self._loaded(merge_loras({name: path}, {name: 1.0}), path, "canary"))
                    answers = self._answers(loaded)
                if furthest(base, answers) <= noise:
                    raise UserError(
                        f"canary: LoRA {name!r} changes nothing at weight 1: the server takes it and answers as the "
                        "base model. The names of its modules match none in the server's model, or it is untrained"
                    )
                for other, known in alone.items():
                    if furthest(known, answers) <= noise:
                        raise UserError(
                            f"canary: LoRAs {other!r} and {name!r} are answered alike: the server takes one for the "
                            "other, or they are one LoRA; leave one of them out if they are"
                        )
                first = first or loaded
                alone[name] = answers
            least = min(furthest(base, answers) for answers in alone.values())
            drift = furthest(next(iter(alone.values())), self._answers(first))
        drift = max(drift, furthest(base, self._answers(self.base)))
        if drift > max(noise, STRAYED * least):
            raise UserError(
                f"canary: after requests for other LoRAs, the server answers {drift:.2g} nats otherwise under a name "
                f"than before (a LoRA changes {least:.2g}): it mixes up LoRAs or reuses prompts that it read under "
                "another one. Start it with --no-enable-prefix-caching, and let nobody else change its LoRAs"
            )
        return (
            f"canary: each LoRA alone changes the answers (by {least:.2g} nats or more), no two are answered alike. "
            f"Base and LoRAs answer as before when they are asked again (within {max(drift, noise):.1g} nats)"
        )

    @property
    def reader(self) -> Reader:
        return Reader(self._tokenization, self._context, is_remote=True, refuses_chat=ServerChats.refusal)

    def apply(self, recipe: Recipe) -> AppliedOnServer:
        """See ``Backend``; raises ``UserError`` for a method that is no merge of LoRAs."""
        if METHODS[recipe.method].lora is None:
            lora_scales(recipe)
        return AppliedOnServer(self._merged(recipe))

    @contextmanager
    def _merged(self, recipe: Recipe) -> Iterator[LanguageModel]:
        """The recipe's merge on the server, for as long as the block lasts."""
        from mergefront.adapters.merging.loras.pool import merge_lora_recipe, merge_loras

        used = {name: path for name, path in self._loras.items() if name in recipe.models}
        if METHODS[recipe.method].lora is None:
            merged = merge_loras(used, lora_scales(recipe))
        else:
            merged = merge_lora_recipe(recipe, used)
        if not merged:
            yield VllmModel(self.wire, self._tokenization, self.base, "base", self._context)
            return
        with self._loaded(merged, next(iter(used.values())), recipe.digest[:12]) as name:
            yield VllmModel(self.wire, self._tokenization, name, recipe.digest, self._context)

    @contextmanager
    def _loaded(self, merged: Mapping[str, Factors], like: Path, label: str) -> Iterator[str]:
        """A LoRA on the server under a name of its own, then unloaded, and then its folder deleted.

        It is described as the LoRA in the folder ``like`` is. Raises ``UserError`` for a rank that the server does not
        take, ``EvaluationError`` when it refuses.
        """
        from mergefront.adapters.merging.loras.pool import write_lora

        rank = max(int(factors.a.shape[0]) for factors in merged.values())
        most = self.settings.max_rank
        if most is not None and rank > most:
            raise UserError(
                f"the merged LoRA has rank {rank}, the server takes {most} (--max-lora-rank); use method lora_svd "
                f"with rank {most}, or start the server with a larger one"
            )
        name = f"mergefront-{self._run}-{next(self._numbers)}-{label}"
        folder = write_lora(merged, self._folder / name, like)
        try:
            server_folder = self.settings.server_folder or str(self._folder)
            self.client.run(self.wire.load(name, f"{server_folder.rstrip('/')}/{name}"))
            yield name
        finally:
            # A server that failed to load may have it after all; an unloaded name does no harm, a loaded one without
            # files does.
            if self._unloaded(name):
                shutil.rmtree(folder, ignore_errors=True)

    def _unloaded(self, name: str) -> bool:
        """Whether the server has the LoRA no more, so that its folder may go."""
        try:
            self.client.run(self.wire.unload(name))
        except EvaluationError as fault:
            return fault.kind == "http 404"
        return True


class ServerChats:
    """A ``ChatReader``: a vLLM server's own chat template, which it shows in tokens only."""

    def __init__(self, wire: VllmWire, model: str) -> None:
        self._wire = wire
        self._model = model

    @staticmethod
    def refusal(chat: Chat) -> str:
        """Why a conversation cannot be put to such a server; nothing where it can."""
        if chat.is_begun:
            return BEGUN
        if not (chat.template or chat.today):
            return ""
        what = "template" if chat.template else "date"
        return f"the server writes conversations by its own template, which takes no {what}; leave that out of chat"

    def rendered(self, chat: Chat, answer: str | None) -> tuple[str, str]:
        return "", ""

    def unread(self, chat: Chat) -> list[str]:
        return []

    def closing(self, chat: Chat) -> Tokens:
        return ()

    def encoded(self, asked: Sequence[tuple[Chat, str | None]]) -> list[tuple[Tokens, Tokens]]:
        return self._wire.client.run(all_of(self._encoded(chat, answer) for chat, answer in asked))

    async def _encoded(self, chat: Chat, answer: str | None) -> tuple[Tokens, Tokens]:
        prompt = tuple(await self._wire.tokenize_chat(self._model, chat, None))
        if answer is None:
            return prompt, ()
        whole = tuple(await self._wire.tokenize_chat(self._model, chat, answer))
        if whole[: len(prompt)] != prompt:
            raise UserError(
                "the server's chat template begins an assistant's turn otherwise than its prompt ends, as where a "
                "prompt opens thoughts. So no answer can be scored; use a metric of generated answers"
            )
        return prompt, whole[len(prompt) :]


class VllmModel:
    """A ``LanguageModel``: the base model or a loaded LoRA, by its name; ``state`` says what is behind the name.

    ``context`` is the most tokens it reads.
    """

    def __init__(self, wire: VllmWire, tokenization: Tokenization, name: str, state: str, context: int) -> None:
        self._wire = wire
        self._tokenization = tokenization
        self._name = name
        self._state = state
        self._context = context

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """Sums of raw log-probabilities; one short request per token of a continuation."""
        pairs = self._tokenization.pairs([(request.context, request.continuation) for request in requests])
        return self._wire.client.run(all_of(self._score(context, tokens) for context, tokens in pairs))

    async def _score(self, context: tuple[int, ...], tokens: tuple[int, ...]) -> LogLikelihood:
        check_room(self._context, len(tokens))
        known = context[-(self._context - len(tokens)) :]
        steps = await all_of(
            self._wire.force(self._name, known + tokens[:place], token, self._state)
            for place, token in enumerate(tokens)
        )
        logprob, is_greedy = sum(one.logprob for one in steps), all(one.is_greedy for one in steps)
        return LogLikelihood(logprob, len(steps), is_greedy, shortened=len(known) < len(context))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        prompts = self._tokenization.texts([request.prompt for request in requests])
        work = (self._continue(tokens, request) for tokens, request in zip(prompts, requests, strict=True))
        return self._wire.client.run(all_of(work))

    async def _continue(self, tokens: tuple[int, ...], request: GenerationRequest) -> Generation:
        check_room(self._context, request.most_tokens)
        known = tokens[-(self._context - request.most_tokens) :]
        stop = request.stop if request.thinking is None else ()
        answer = await self._wire.generate(self._name, known, request.most_tokens, stop, self._state, drawing(request))
        said = replace(answer, shortened=len(known) < len(tokens))
        return answer_of(said, request, is_open=self._tokenization.opens_thoughts(request))
