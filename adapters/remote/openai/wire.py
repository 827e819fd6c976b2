"""What is said to an OpenAI-compatible endpoint, and how its answers are read.

Many endpoints ignore ``echo`` and ``logprobs`` and still answer with status 200. So an answer counts only if it has
everything that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergefront.adapters.language_model import Generation, LogLikelihood
from mergefront.adapters.remote.http.client import HttpClient, Reply
from mergefront.adapters.remote.http.json_answers import MalformedAnswerError, field, logprob, usage
from mergefront.optimizer.errors import EvaluationError

MOST_STOPS = 4
"""The OpenAI API takes no more stop strings; further ones are applied here."""


class NoLogProbabilitiesError(EvaluationError):
    """The endpoint gives no log-probabilities of a given text."""


@dataclass(frozen=True)
class EchoedToken:
    """A token of an echoed text: where it begins (characters), its log-probability (None for the first)."""

    offset: int
    logprob: float | None
    is_greedy: bool


class OpenAIWire:
    """One model at one endpoint. ``chat`` sends prompts as messages of a user, after ``system``."""

    def __init__(
        self,
        client: HttpClient,
        model: str,
        *,
        mode: Literal["completions", "chat"] = "completions",
        system: str | None = None,
    ) -> None:
        self.client = client
        self.model = model
        self.mode = mode
        self._system = system

    async def generate(self, prompt: str, max_tokens: int, stop: Sequence[str]) -> Generation:
        body: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": 0}
        if stop:
            body["stop"] = list(stop[:MOST_STOPS])
        if self.mode == "completions":
            body["prompt"] = prompt
            path = "/completions"
        else:
            system = [] if self._system is None else [{"role": "system", "content": self._system}]
            body["messages"] = [*system, {"role": "user", "content": prompt}]
            path = "/chat/completions"
        return await self.client.ask("POST", path, body, lambda answer: self._read_generation(answer, stop))

    def _read_generation(self, answer: Any, stop: Sequence[str]) -> Reply[Generation]:
        choice = field(answer, "choices", 0, kind=dict)
        reason = choice.get("finish_reason")
        if self.mode == "completions":
            text = field(choice, "text", kind=str)
        else:
            message = field(choice, "message", kind=dict)
            if message.get("content") is None:
                raise EvaluationError(
                    f"{self.model} gave no text (finish_reason {reason!r}"
                    f"{', a refusal' if message.get('refusal') else ''})",
                    kind="no answer",
                )
            text = field(message, "content", kind=str)
        if reason not in ("stop", "length", "eos", None):
            raise EvaluationError(f"{self.model} stopped with finish_reason {reason!r}", kind="no answer")
        cut, stopped = _cut(text, stop)
        prompt_tokens, generated = usage(answer)
        finish: Literal["stop", "length"] = "length" if reason == "length" and not stopped else "stop"
        return Reply(Generation(cut, generated, finish), prompt_tokens, generated)

    async def score(self, context: str, continuation: str) -> LogLikelihood:
        """The log-likelihood of a text after another, by echo; a token across the seam counts to the continuation.

        Raises ``NoLogProbabilitiesError`` where the endpoint does not echo.
        """
        if self.mode == "chat":
            raise NoLogProbabilitiesError(
                "chat endpoints give no log-probabilities of a given text; use mode: completions or a metric that "
                "generates (exact_match)",
                kind="no log-probabilities",
            )
        tokens = await self.echo(context + continuation)
        bare = len(context.rstrip())  # spaces at the seam belong to the continuation, as for local models
        ends = [*(token.offset for token in tokens[1:]), len(context) + len(continuation)]
        scored = [token for token, end in zip(tokens, ends, strict=True) if end > bare]
        if not scored or scored[0].logprob is None:
            raise EvaluationError(
                "the endpoint gives no log-probability of the first token of a text; give every item a prompt",
                kind="no log-probability",
            )
        values = [token.logprob for token in scored if token.logprob is not None]
        if len(values) < len(scored):
            raise EvaluationError("the endpoint left log-probabilities out", kind="no log-probability")
        return LogLikelihood(math.fsum(values), len(values), all(token.is_greedy for token in scored))

    async def echo(self, text: str) -> list[EchoedToken]:
        """The tokens of a text with their log-probabilities, generating nothing."""
        body = {
            "model": self.model,
            "prompt": text,
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        return await self.client.ask("POST", "/completions", body, lambda answer: _read_echo(answer, text))


def _read_echo(answer: Any, text: str) -> Reply[list[EchoedToken]]:
    choice = field(answer, "choices", 0, kind=dict)
    listed = choice.get("logprobs")
    echoed = choice.get("text")
    if (
        not isinstance(listed, dict)
        or not isinstance(listed.get("token_logprobs"), list)
        or not isinstance(listed.get("text_offset"), list)
        or not isinstance(echoed, str)
        or not echoed.startswith(text)
    ):
        raise NoLogProbabilitiesError(
            "the endpoint gives no log-probabilities of a given text (it ignores echo or logprobs); use a metric "
            "that generates (exact_match), or another server",
            kind="no log-probabilities",
        )
    values, offsets, top = listed["token_logprobs"], listed["text_offset"], listed.get("top_logprobs")
    if len(values) != len(offsets) or offsets != sorted(offsets):
        raise MalformedAnswerError("has token_logprobs and text_offset that do not fit together")
    start = offsets[0] if offsets else 0
    tokens = []
    for place in range(len(values)):
        offset = field(offsets, place, kind=int) - start
        if offset >= len(text):
            break  # the one token generated after the text
        value = None if place == 0 and values[0] is None else logprob(values, place)
        best = top[place] if isinstance(top, list) and place < len(top) else None
        greedy = isinstance(best, dict) and value is not None and _is_best(value, best)
        tokens.append(EchoedToken(offset, value, greedy))
    if not tokens:
        raise MalformedAnswerError("has no tokens of the text")
    prompt_tokens, generated = usage(answer)
    return Reply(tokens, prompt_tokens, generated)


def _is_best(value: float, best: Mapping[str, Any]) -> bool:
    others = [other for other in best.values() if isinstance(other, (int, float))]
    return bool(others) and value >= max(others) - 1e-9


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    found = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
