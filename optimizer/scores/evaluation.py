"""What an evaluation is, and the protocol of whatever makes one.

The search loop knows neither weights nor HTTP: it hands a recipe to an ``Evaluator`` and gets an
``Evaluation`` back. A plain function ``Recipe -> {objective: number}`` is an evaluator too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe

RACED = "racing"
"""Key of ``Evaluation.details`` of a raced candidate: "asked" and "of" (items by task), "stopped" (why)."""


def rule_of_succession(counts: ArrayLike) -> Array:
    """The variance of a right-or-wrong item after ``counts`` that were all right, or all wrong.

    The next one is another with the probability 1 / (n + 2) (Laplace): n equal answers are no certainty.
    """
    chance = 1.0 / (np.asarray(counts, dtype=float) + 2.0)
    return np.asarray(chance * (1.0 - chance))


@dataclass(frozen=True)
class ItemScores:
    """Scores of one task's items for one recipe.

    ``ids`` (stable identifiers of the items, in the task's order), ``scores`` (one number per item in
    the unit of the task's metric, whose direction says which end is better: a loss is minimised) and
    ``margins`` (optional, one per item, larger is always better: a smooth number behind the score, such
    as a log-likelihood difference; what an item-level surrogate models) have equal length.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    margins: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.scores) or (self.margins is not None and len(self.margins) != len(self.ids)):
            raise ValueError(
                f"{len(self.ids)} item ids, {len(self.scores)} scores and "
                f"{len(self.margins or ())} margins must be equally many"
            )

    @cached_property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)

    @cached_property
    def values(self) -> Array:
        """The scores as an array: compared with those of many others."""
        return np.asarray(self.scores, dtype=float)

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Where each item is among the ids."""
        return {item: index for index, item in enumerate(self.ids)}

    @property
    def standard_error(self) -> float:
        """Of the mean: sample standard deviation over the square root of the number of items.

        Where all items are right, or all wrong, the deviation is that of the rule of succession.
        """
        count, mean = len(self.scores), self.mean
        if count < 2:
            return float("nan")
        variance = math.fsum((score - mean) ** 2 for score in self.scores) / (count - 1)
        if mean in (0.0, 1.0) and variance == 0.0:
            variance = float(rule_of_succession(count))
        return math.sqrt(variance / count)


@dataclass(frozen=True)
class Estimate:
    """The mean score over all items.

    ``standard_error`` is its error as a sample of the items that there might be, ``unasked_error`` only what the items
    not asked leave open: 0 once all were.
    """

    mean: float
    standard_error: float
    unasked_error: float = 0.0


@dataclass(frozen=True)
class RaceResult:
    """Where a race ended: the objectives' estimates, the items answered (in the task's order) and why it stopped."""

    estimates: Mapping[str, Estimate]
    items: Mapping[str, ItemScores]
    details: Mapping[str, Any]


class RaceRun(Protocol):
    """One candidate's race; implemented by ``mergefront.optimizer.racing``."""

    def batch(self) -> dict[str, list[int]] | None:
        """Item indices to ask next, by task; None when the race is over."""

    def tell(self, name: str, indices: Sequence[int], scored: ItemScores) -> None:
        """The scores of the items that ``batch`` asked for, in its order."""

    def result(self) -> RaceResult:
        """The estimates so far and the items that were answered."""


class Race(Protocol):
    """What decides which items a candidate answers."""

    def start(self, items: Mapping[str, Sequence[str]], exact: Mapping[str, float]) -> RaceRun:
        """The race over the items (ids) of each task; ``exact`` are objectives that no item decides."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What the search asks of an evaluator besides the recipe itself.

    ``objectives`` are the numbers that the search needs; ``split`` says whose items are scored
    ("search" while searching, "report" for the final report). With ``race`` an evaluator that scores
    item by item may stop early; others ignore it.
    """

    objectives: tuple[str, ...]
    split: str = "search"
    race: Race | None = None


MONEY = "money"
"""What a cost in the currency of a backend's prices is called."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of one recipe.

    ``scores`` has one finite number per objective in its own unit; ``standard_errors`` has an entry
    for each objective whose noise is known (0 for an exact number). ``seconds`` is wall time by
    phase ("merge", "score", "total"); ``cost`` counts what was spent ("items", "tokens", "requests").
    """

    scores: Mapping[str, float]
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[str, ItemScores] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Evaluator(Protocol):
    """Scores recipes. May raise ``EvaluationError`` (a failed candidate, the search goes on)."""

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation: ...


class FunctionEvaluator:
    """A plain function ``Recipe -> {objective: number}`` (or one number, or an ``Evaluation``)."""

    def __init__(self, function: Callable[[Recipe], Any]) -> None:
        self.function = function

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        started = time.perf_counter()
        try:
            returned = self.function(recipe)
        except UserError as error:  # of what the function calls, not of the search
            raise EvaluationError(f"the function raised UserError: {error}", kind="UserError") from error
        seconds = {"total": time.perf_counter() - started}
        if isinstance(returned, Evaluation):
            return returned
        if isinstance(returned, Mapping):
            return Evaluation(scores=dict(returned), seconds=seconds)
        if len(request.objectives) == 1:
            return Evaluation(scores={request.objectives[0]: returned}, seconds=seconds)
        raise EvaluationError(
            f"the function returned {type(returned).__name__}; it must return a mapping with the objectives "
            f"{', '.join(request.objectives)}",
            kind="wrong type",
        )


LARGEST = 1e150
"""Numbers beyond this magnitude are no scores: their squares would be infinite."""


def checked_scores(evaluation: Evaluation, objectives: Sequence[str]) -> dict[str, float]:
    """The objectives' scores as floats.

    Raises ``EvaluationError`` for one that is missing, NaN, infinite or beyond ``LARGEST``, and for a standard error
    below 0. A standard error that is NaN or infinite is an unknown one.
    """
    scores = {}
    for name in objectives:
        if name not in evaluation.scores:
            raise EvaluationError(
                f"objective {name!r} was not scored (scored: {', '.join(evaluation.scores) or 'nothing'})",
                kind="missing objective",
            )
        scores[name] = finite_number(evaluation.scores[name], f"objective {name!r}")
        error = evaluation.standard_errors.get(name)
        if isinstance(error, int | float) and error < 0:
            raise EvaluationError(
                f"the standard error of {name!r} is {error:g}; it must be at least 0", kind="negative"
            )
    return scores


def finite_number(given: Any, what: str) -> float:
    """A reported number as a float; raises ``EvaluationError`` for what is none, not finite or beyond ``LARGEST``."""
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):  # torch's, of a tensor of several numbers
        raise EvaluationError(f"{what} is {given!r:.60}, not a number", kind="not a number") from None
    if not math.isfinite(value):
        raise EvaluationError(f"{what} is {value}, not a finite number", kind="not finite")
    if abs(value) > LARGEST:
        raise EvaluationError(f"{what} is {value:g}, beyond {LARGEST:g}: no score", kind="not finite")
    return value
