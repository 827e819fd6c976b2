"""A language model that counts what was asked of it, and what came of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mergefront.adapters.language_model import (
    Chat,
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
    TextModel,
    text_model,
)
from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.outcomes import CUT, EMPTY, SHORTENED, THOUGHT, UNANSWERED


class CountedModel:
    """Asks the ``model`` inside it, and counts.

    ``requests``, ``scored_tokens`` (of continuations) and ``generated_tokens`` (as far as the model says) add up over
    all calls. One instance serves one merge: a request, with the seed of what is drawn, has one answer. ``writes_all``:
    every answer is written to its end, whatever is wanted of it.
    """

    def __init__(self, model: LanguageModel, *, writes_all: bool = False) -> None:
        self.model = model
        self._writes_all = writes_all
        self.requests = 0
        self.scored_tokens = 0
        self.generated_tokens = 0
        self._generated: dict[GenerationRequest, Generation] = {}
        self._vectors: dict[tuple[str, str], Array] = {}
        self._outcomes: dict[tuple[str | Chat, str, int], tuple[str, ...]] = {}

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        self._refuse_images(requests)
        answers = self.model.loglikelihood(requests)
        self.requests += len(answers)
        self.scored_tokens += sum(answer.tokens for answer in answers)
        for request, answer in zip(requests, answers, strict=True):
            if answer.shortened:
                self._outcomes[request.context, request.image, 0] = (SHORTENED,)
        return answers

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Like the model's, but each request is sent once: two tasks share one answer."""
        whole = [replace(request, wanted=None) for request in requests]
        keys = [one if one in self._generated else request for one, request in zip(whole, requests, strict=True)]
        new = [request for request in dict.fromkeys(keys) if request not in self._generated]
        for request, answer in zip(new, self.generate_anew(new) if new else (), strict=True):
            self._generated[request] = answer
            if answer.finish != "settled":
                self._generated[replace(request, wanted=None)] = answer
        answers = [self._generated[request] for request in keys]
        self.note(requests, answers)
        return answers

    def generate_anew(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """The model's own answers, whatever was asked before."""
        self._refuse_images(requests)
        answers = self.model.generate(requests)
        self.requests += len(answers)
        self.generated_tokens += sum(answer.tokens or 0 for answer in answers)
        self.note(requests, answers)
        return answers

    @property
    def heeds_wanted(self) -> bool:
        """Whether answers are written only as far as is wanted of them."""
        return not self._writes_all and getattr(self.model, "heeds_wanted", False)

    @property
    def labels(self) -> tuple[str, ...]:
        return self._texts.labels

    @property
    def similarity(self) -> str:
        return self._texts.similarity

    def classify(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, ...]]:
        self.requests += len(texts)
        return self._texts.classify(texts)

    def embed(self, texts: Sequence[str], role: str) -> Array:
        """Like the model's, but each text is sent once: batches of a race, and tasks, share a corpus."""
        new = [text for text in dict.fromkeys(texts) if (text, role) not in self._vectors]
        self.requests += len(new)
        for text, vector in zip(new, self._texts.embed(new, role) if new else (), strict=True):
            self._vectors[text, role] = vector
        return np.array([self._vectors[text, role] for text in texts])

    @property
    def _texts(self) -> TextModel:
        return text_model(self.model)

    def take_outcomes(self) -> Counter[str]:
        """How many of the prompts since the last call had which outcome (see ``OUTCOMES``), and of those without an
        answer the reasons, each as ``unanswered: reason``."""
        counts = Counter(outcome for outcomes in self._outcomes.values() for outcome in outcomes)
        self._outcomes = {}
        return counts

    def note(self, requests: Iterable[GenerationRequest], answers: Iterable[Generation]) -> None:
        """Remember the outcome of each prompt, in the place of what was noted of it before."""
        for request, answer in zip(requests, answers, strict=True):
            key = request.prompt, request.image, request.seed
            if answer.finish != "settled" or key not in self._outcomes:
                self._outcomes[key] = _outcomes(answer)

    def add_outcomes(self, request: GenerationRequest, *outcomes: str) -> None:
        """Remember what else came of a prompt."""
        place = (request.prompt, request.image, request.seed)
        self._outcomes[place] = (*self._outcomes.get(place, ()), *outcomes)

    def _refuse_images(self, requests: Sequence[ScoringRequest | GenerationRequest]) -> None:
        """Raises ``UserError`` rather than ask about an image that the model is not shown."""
        if any(request.image for request in requests) and not getattr(self.model, "reads_images", False):
            raise UserError("items with an image were put to a model that reads no images")


def _outcomes(answer: Generation) -> tuple[str, ...]:
    found = (SHORTENED,) if answer.shortened else ()
    if answer.unanswered:
        return (*found, UNANSWERED, f"{UNANSWERED}: {answer.unanswered}")
    if answer.is_thought:
        return (*found, THOUGHT)
    if not answer.text.strip():
        return (*found, EMPTY)
    return (*found, CUT) if answer.finish == "length" else found
