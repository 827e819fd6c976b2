"""Who answers: a live model here, or a server that makes the merges."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from mergefront.adapters.chat_templates import ChatTemplate
from mergefront.adapters.language_model import Chat, GenerationRequest, Message
from mergefront.adapters.local.asked import SilentModel
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.local.limits import longest_input
from mergefront.adapters.local.mixture.backend import MixtureBackend
from mergefront.adapters.remote.backend_types import answers_with_a_loss, make_backend
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.chat.generation import Answer, Sampling, Show, write_answer
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.study.evaluators import live_backend, missing_weights, refuse_changed, server_settings
from mergefront.study.stored_study import Study

Turns = Sequence[Mapping[str, str]]
"""Messages with "role" and "content", the last one the user's."""
NO_TEMPLATE = "none"
"""In the place of a chat template: texts are continued as they stand."""


class Speaker(Protocol):
    """Answers as any merge of a study."""

    @property
    def has_template(self) -> bool:
        """Whether it answers messages; if not, it continues the last one's text, and knows of none before."""
        ...

    def turn_to(self, recipe: Recipe) -> float:
        """Make this merge the one that answers; the seconds that it took. May raise ``MergefrontError``."""
        ...

    def answer(self, turns: Turns, sampling: Sampling, show: Show) -> tuple[Answer, str]:
        """The answer to the last turn, and what was left out for lack of room (mostly nothing).

        Raises ``UserError`` for turns that cannot be put to it.
        """
        ...


@contextmanager
def speaker_of(study: Study, template: str = "", options: Mapping[str, Any] | None = None) -> Iterator[Speaker]:
    """Who answers for a study, while the block lasts; ``template``: a file, one of the tokenizer's by name, or "none".

    ``options`` are variables of the template, such as ``{"enable_thinking": False}``.

    Raises ``UserError`` where nothing here makes the study's merges, or they write no text.
    """
    definition = study.definition
    kind = definition.evaluator.type
    if kind == "external":
        raise UserError(
            f"study {study.name!r} is scored by an outside harness (backend: external), which makes its merges; "
            "export one to talk to it"
        )
    if kind == "server":
        if template:
            raise UserError("--template: the server has the chat template; leave the option out")
        settings = server_settings(definition)
        if answers_with_a_loss(settings):
            raise UserError(f"study {study.name!r} asks a service that answers with a loss; it writes no text")
        backend = make_backend(settings, definition.space, definition.places, known=definition.served)
        with closing(backend), ExitStack() as stack:
            yield ServerSpeaker(backend, stack, options or {})
        return
    base = definition.space.base_model
    missing = ["base_model"] if base is None else missing_weights(definition, anchors(definition.space)[0].recipe)
    if missing:
        raise UserError(
            f"chat: there are no weights for {', '.join(missing)} under {definition.root}; "
            "name the folder of the study file with --root DIR"
        )
    refuse_changed(definition, models_only=True)
    with ExitStack() as stack:
        yield LocalSpeaker(live_backend(definition), stack, template, options or {})


class _Turning:
    """What applies one merge of ``backend`` after another; ``stack`` leaves the last one at its end."""

    def __init__(self, backend: Any, stack: ExitStack) -> None:
        self._backend = backend
        self._stack = stack
        self._recipe: Recipe | None = None
        self._applied: Any = None

    def turn_to(self, recipe: Recipe) -> float:
        started = perf_counter()
        if recipe != self._recipe:
            self._recipe = None
            self._stack.close()
            self._applied = self._stack.enter_context(self._backend.apply(recipe))
            self._recipe = recipe
        return perf_counter() - started


class LocalSpeaker(_Turning):
    """Merges in place in one live model of transformers.

    Raises ``UserError`` for a model that writes no text, and for a template that cannot be read.
    """

    def __init__(
        self, backend: LocalBackend | MixtureBackend, stack: ExitStack, template: str, options: Mapping[str, Any]
    ) -> None:
        super().__init__(backend, stack)
        asked = backend.live
        if isinstance(asked, SilentModel):
            raise UserError(f"chat: {type(asked.model).__name__} writes no text, so there is nobody to talk to")
        self._model: Any = asked.model
        self._tokenizer: Any = getattr(asked.processor, "tokenizer", asked.processor)
        self._longest = longest_input(self._model, self._tokenizer)
        own = getattr(self._tokenizer, "chat_template", None)
        read = Path(template).read_text(encoding="utf-8") if template and Path(template).is_file() else template
        has_one = template != NO_TEMPLATE and bool(own or read)
        self._template = ChatTemplate.of_tokenizer(self._tokenizer, read) if has_one else None
        self._options = options
        unread = list(options) if self._template is None else self._template.unread(options)
        if unread:
            why = "there is no chat template" if self._template is None else "the chat template has no such variable"
            raise UserError(f"--template-option {unread[0]}: {why}; leave it out")

    @property
    def has_template(self) -> bool:
        return self._template is not None

    def answer(self, turns: Turns, sampling: Sampling, show: Show) -> tuple[Answer, str]:
        kept, prompt = list(turns), self._tokens(turns)
        most = self._longest - min(sampling.max_new_tokens, self._longest // 4)
        first = int(kept[0]["role"] == "system")
        while len(prompt) > most and len(kept) > first + 2:
            del kept[first : first + 2]  # the oldest question and its answer
            prompt = self._tokens(kept)
        if len(prompt) > most:
            raise UserError(
                f"this has {len(prompt)} tokens; the model reads {self._longest}, the answer's own included"
            )
        room = min(sampling.max_new_tokens, self._longest - len(prompt))
        answer = write_answer(self._model, self._tokenizer, prompt, Sampling(sampling.temperature, room), show)
        left_out = len(turns) - len(kept)
        note = f"the model reads no more at once: the first {left_out} turns were left out" if left_out else ""
        return answer, note

    def _tokens(self, turns: Turns) -> list[int]:
        if self._template is None:
            return list(self._tokenizer(turns[-1]["content"])["input_ids"])
        text = self._template.prompt(turns, self._options, today=date.today().isoformat())
        # The template writes its own begin token.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


class ServerSpeaker(_Turning):
    """Merges that a server makes, read by its own chat template where it has one; whole answers."""

    def __init__(self, backend: Any, stack: ExitStack, options: Mapping[str, Any]) -> None:
        super().__init__(backend, stack)
        self._options = json.dumps(options)
        self.has_template = _reads_conversations(backend.reader)

    def answer(self, turns: Turns, sampling: Sampling, show: Show) -> tuple[Answer, str]:
        started = perf_counter()
        prompt = _conversation(turns, self._options) if self.has_template else turns[-1]["content"]
        request = GenerationRequest(
            prompt, sampling.max_new_tokens, temperature=sampling.temperature, seed=secrets.randbits(31)
        )
        (said,) = self._applied.generate([request])
        show(f"(no answer: {said.unanswered})" if said.unanswered else said.text)
        note = "the server reads no more at once: the beginning was left out" if said.shortened else ""
        return Answer(said.text, said.tokens, perf_counter() - started, said.finish), note


def _conversation(turns: Turns, options: str = "{}") -> Chat:
    return Chat(tuple(Message(turn["role"], turn["content"]) for turn in turns), options=options)


def _reads_conversations(reader: Reader) -> bool:
    """Whether a server takes messages: by a chat route, or by a template that is known here."""
    asked = _conversation([{"role": "user", "content": "Hello"}])
    if reader.refuses_chat(asked):
        return False
    if reader.tokenization is not None:
        try:
            reader.tokenization.chats.rendered(asked, None)
        except UserError:
            return False
    return True
