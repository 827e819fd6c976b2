"""What a task asks of a model: two verbs, the same for local weights and for every server.

The verbs are those of the LM evaluation harness: the log-likelihood of a continuation, and greedy
generation. Requests and answers are plain values; answers come back in the order of the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mergefront.optimizer.errors import UserError

Verb = Literal["loglikelihood", "generate", "python"]
"""What a task asks: one of the two verbs, or a Python function that is handed the live model."""


@dataclass(frozen=True)
class ScoringRequest:
    """How likely is ``continuation`` after ``context``?

    Both are encoded together and split where the context's own tokens end, so that tokens which
    span the seam are those that the model would see in running text; spaces at the end of the
    context count to the continuation. An empty context stands for the start of a text.
    ``image`` is the path of a picture that is shown before the context.
    """

    context: str
    continuation: str
    image: str = ""


@dataclass(frozen=True)
class LogLikelihood:
    """``logprob`` is the sum over the continuation's ``tokens`` (nats, at most 0); ``is_greedy``
    says whether each of them is the model's most likely token."""

    logprob: float
    tokens: int
    is_greedy: bool


@dataclass(frozen=True)
class GenerationRequest:
    """Continue ``prompt`` greedily for at most ``max_new_tokens``, up to the first of the ``stop`` strings.

    ``image`` is the path of a picture that is shown before the prompt.
    """

    prompt: str
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ()
    image: str = ""


@dataclass(frozen=True)
class Generation:
    """The generated ``text`` without the prompt and without the stop string.

    ``tokens`` counts what was generated, stop included; ``finish`` is "length" when the model was
    cut off and "stop" when it ended by itself or at a stop string.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]


@runtime_checkable
class LanguageModel(Protocol):
    """A model that can be asked. May raise ``EvaluationError`` when it answers with NaN."""

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]: ...


class CountedModel:
    """A language model that counts what was asked of the one inside it.

    ``requests``, ``scored_tokens`` (of continuations) and ``generated_tokens`` add up over all calls. One instance
    serves one merge: generation is greedy, so a prompt has one answer.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.requests = 0
        self.scored_tokens = 0
        self.generated_tokens = 0
        self._generated: dict[GenerationRequest, Generation] = {}

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        self._refuse_images(requests)
        answers = self.model.loglikelihood(requests)
        self.requests += len(answers)
        self.scored_tokens += sum(answer.tokens for answer in answers)
        return answers

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Like the model's, but each request is sent once: two tasks share one answer."""
        self._refuse_images(requests)
        new = [request for request in dict.fromkeys(requests) if request not in self._generated]
        if new:
            answers = self.model.generate(new)
            self._generated.update(zip(new, answers, strict=True))
            self.requests += len(answers)
            self.generated_tokens += sum(answer.tokens for answer in answers)
        return [self._generated[request] for request in requests]

    def _refuse_images(self, requests: Sequence[ScoringRequest | GenerationRequest]) -> None:
        """Raises ``UserError`` rather than ask about an image that the model is not shown."""
        if any(request.image for request in requests) and not getattr(self.model, "reads_images", False):
            raise UserError("items with an image were put to a model that reads no images")
