"""What is said to an OpenAI-compatible endpoint.

Many endpoints ignore ``echo`` and ``logprobs`` and still answer with status 200. So an answer counts only if it has
everything that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from mergefront.adapters.language_model import Chat, Generation, LogLikelihood, Message
from mergefront.adapters.remote.http.client import HttpClient, RefusedError, Reply
from mergefront.adapters.remote.http.json_answers import usage
from mergefront.adapters.remote.openai.answers import outcome, read_generation, written
from mergefront.adapters.remote.openai.echo import EchoedToken, NoLogProbabilitiesError, read_echo, score_continuation
from mergefront.adapters.remote.openai.request_fields import FieldNames, refuses_temperature
from mergefront.optimizer.errors import EvaluationError, UserError

T = TypeVar("T")
MOST_STOPS = 4
"""The OpenAI API takes no more stop strings; further ones are applied here."""
NONE_IN_CHAT = (
    "chat endpoints give no log-probabilities of a given text; mode: completions may (for tasks with chat, with "
    "tokenizer: FOLDER)"
)
_READ_WHOLE = 0.9
"""The least share of a prompt's tokens, as they are counted here, that a server reports which read it whole."""


class OpenAIWire:
    """One model at one endpoint. ``chat`` sends prompts as messages of a user, after ``system``.

    ``request`` has fields that are added to each request (a temperature of None leaves that field out); ``count`` says
    how many tokens a text has where the endpoint does not. ``state``, once it is known, tells the model's kept answers
    from those of others of its name.
    """

    def __init__(
        self,
        client: HttpClient,
        model: str,
        *,
        mode: Literal["completions", "chat"] = "completions",
        system: str | None = None,
        request: Mapping[str, Any] | None = None,
        count: Callable[[str], int] | None = None,
    ) -> None:
        self.client = client
        self.model = model
        self.mode = mode
        self.system = system
        self._added = dict(request or {})
        self._count = count
        self.state: str | None = None
        self._names = FieldNames()

    @property
    def is_drawing(self) -> bool:
        """Whether answers are drawn at random, since the model is asked at its own temperature."""
        return "temperature" in self._added and self._added["temperature"] is None

    async def generate(
        self,
        prompt: str | Chat,
        max_tokens: int,
        stop: Sequence[str],
        *,
        drawn: Mapping[str, Any] | None = None,
        cached: bool = True,
    ) -> Generation:
        """A greedy continuation, or one that is drawn as ``drawn`` says; in chat mode, an answer."""
        if drawn and self.is_drawing:
            raise UserError(
                "backend.request leaves the temperature out (null), and the task has one; keep one of the two"
            )
        body: dict[str, Any] = {"max_tokens": max_tokens, **(drawn or {})}
        if stop:
            body["stop"] = list(stop[:MOST_STOPS])
        if self.mode == "completions":
            path, body["prompt"] = "/completions", prompt
            sent = str(prompt)
        else:
            path, chat = "/chat/completions", self._conversation(prompt)
            body["messages"] = [{"role": one.role, "content": one.content} for one in chat.messages]
            if chat.options != "{}":
                body["chat_template_kwargs"] = json.loads(chat.options)
            sent = "".join(one.content for one in chat.messages)

        def read(answer: Any) -> Reply[Generation]:
            if isinstance(answer, dict) and "unanswered" in answer:
                return Reply(read_generation(answer, stop, 0))
            text = written(answer)
            asked, made = self._tokens(answer, sent, text)
            generation = read_generation(answer, stop, made)
            # A server that reads fewer tokens than the prompt has left its beginning out; templates only add some.
            if self._count is not None and asked is not None and asked < _READ_WHOLE * self._count(sent):
                generation = replace(generation, shortened=True)
            return Reply(generation, asked, made)

        return await self._ask(path, body, read, outcome, cached)

    def _conversation(self, prompt: str | Chat) -> Chat:
        chat = Chat((Message("user", prompt),)) if isinstance(prompt, str) else prompt
        return chat if self.system is None else replace(chat, messages=(Message("system", self.system), *chat.messages))

    async def score(self, context: str, continuation: str) -> LogLikelihood:
        """The log-likelihood of a text after another, by echo; a token across the seam counts to the continuation.

        Raises ``NoLogProbabilitiesError`` where the endpoint does not echo.
        """
        if self.mode == "chat":
            raise NoLogProbabilitiesError(NONE_IN_CHAT)
        return score_continuation(await self.echo(context + continuation), context)

    async def echo(self, text: str, *, cached: bool = True) -> list[EchoedToken]:
        """The tokens of a text with their log-probabilities; one more token is generated and left out."""

        def read(answer: Any) -> Reply[list[EchoedToken]]:
            return Reply(read_echo(answer, text), *self._tokens(answer, text, " "))

        body = {"prompt": text, "max_tokens": 1, "echo": True, "logprobs": 1}
        return await self._ask("/completions", body, read, lambda _: None, cached)

    def _tokens(self, answer: Any, prompt: str, text: str) -> tuple[int | None, int | None]:
        """Tokens read and written, None where they are unknown: a text is never written in 0 tokens."""
        asked, made = usage(answer)
        if made == 0 and text:
            made = None
        if self._count is not None:
            asked = self._count(prompt) if asked is None else asked
            made = self._count(text) if made is None else made
        return asked, made

    async def _ask(
        self,
        path: str,
        content: Mapping[str, Any],
        read: Callable[[Any], Reply[T]],
        refused: Callable[[str], Any],
        cached: bool,
    ) -> T:
        """Ask in the names that the model has for the fields; the cache knows each request by the usual names."""
        body = {"model": self.model, "temperature": 0, **content, **self._added}
        if body["temperature"] is None:
            del body["temperature"]
        while True:
            sent = self._names.applied(body)
            try:
                return await self.client.ask(
                    "POST", path, sent, read, lasting_body=body, refused=refused, state=self.state or "", cached=cached
                )
            except RefusedError as refusal:
                # Of requests under way together the first refusal teaches, and all are sent again.
                if self._names.applied(body) == sent and not self._names.learn(sent, refusal.reason):
                    if refuses_temperature(refusal.reason):
                        raise EvaluationError(
                            f"{refusal}; write request: {{temperature: null}} in the backend to leave it out: each "
                            "answer is then drawn at random, once",
                            kind=refusal.kind,
                        ) from None
                    raise
