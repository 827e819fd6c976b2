"""The LM evaluation harness' model interface over ours, so that its tasks ask any backend (lm-eval 0.4.13)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import LM

from mergefront.adapters.language_model import Chat, GenerationRequest, LanguageModel, ScoringRequest
from mergefront.adapters.tasks.lm_eval.generation import longest_answer, stop_strings
from mergefront.optimizer.errors import EvaluationError


class HarnessModel(LM):  # type: ignore[misc]
    """Answers the harness' requests with a ``LanguageModel``; never reloads anything.

    ``chats`` has the conversations that prompts stand for, where they are no texts. ``needs_greedy``: the metric asks
    whether continuations are the likeliest ones.
    """

    def __init__(
        self, model: LanguageModel, chats: Mapping[str, Chat] | None = None, *, needs_greedy: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.chats = chats or {}
        self.needs_greedy = needs_greedy
        self.unanswered: dict[int, str] = {}
        """Why a request has no usable answer, by the identity of its instance."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        answers = self.model.loglikelihood(
            [ScoringRequest(self._asked(request.args[0]), request.args[1]) for request in requests]
        )
        for request, answer in zip(requests, answers, strict=True):
            if answer.tokens == 0:
                # Its log-likelihood of 0 would win against every other choice.
                raise EvaluationError(
                    f"{request.args[1]!r} has no tokens in this model's tokenizer, so it cannot be scored",
                    kind="no tokens",
                )
        if self.needs_greedy and any(answer.is_greedy is None for answer in answers):
            raise EvaluationError(
                "the endpoint does not say whether a token is the likeliest one (top_logprobs), which this task's "
                "metric needs; use another metric or server",
                kind="no log-probabilities",
            )
        return [(answer.logprob, bool(answer.is_greedy)) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """The log-likelihood of whole texts, window by window where they are longer than the model reads."""
        answers = self.model.loglikelihood([ScoringRequest("", request.args[0]) for request in requests])
        return [answer.logprob for answer in answers]

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = self.model.generate([self._generation(*request.args[:2]) for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            if answer.unanswered:
                self.unanswered[id(request)] = answer.unanswered
        return [answer.text for answer in answers]

    def _generation(self, prompt: str, settings: dict[str, Any]) -> GenerationRequest:
        return GenerationRequest(self._asked(prompt), longest_answer(settings), stop_strings(settings))

    def _asked(self, prompt: str) -> str | Chat:
        return self.chats.get(prompt, prompt)
