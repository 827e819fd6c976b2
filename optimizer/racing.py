"""Racing: ask a candidate only as many items as it takes to know what to do with it.

Every task's items stand in one order, fixed by the seed and the anchors' answers. The anchors answer
the first ``items`` of them (a fraction). A candidate answers a few, then twice as many, and so on:

- it stops as soon as a candidate that was evaluated before is better in every objective, by paired
  comparison over the items that both answered, with the stated confidence;
- it stops at the fraction ``items`` when it is not on the front as it is known by then;
- otherwise it goes on, up to all items, as long as the search has not paid more than the fraction
  ``items`` of what full evaluation would have cost: what early stops saved is spent on the front.

Scores of a part of the items are estimates (``item_sampling``) with a standard error of their own, which
the surrogate reads. Nothing here is drawn at random while racing, so that a resumed search asks the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.comparison import Difference
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.evaluation import Evaluation, ItemScores
from mergefront.optimizer.item_sampling import (
    Estimate,
    difference,
    estimate,
    informative_order,
    random_order,
)
from mergefront.optimizer.objectives import Objective
from mergefront.optimizer.pareto import nondominated

Array = NDArray[np.float64]

DETAILS = "racing"
"""Key of ``Evaluation.details``: "asked" and "of" (items by task), "stopped" (why)."""
FEWEST_ITEMS = 16
"""No task's first round is smaller: with fewer items even a clear difference proves little."""


@dataclass(frozen=True)
class RacingSettings:
    """How a search races.

    ``items``: fraction of the items in (0, 1] that the search pays on average per candidate, at most, and that
    each anchor answers. ``confidence``, in [0.5, 1): a comparison with one rival in one round errs no more
    often than 1 - ``confidence`` when it stops a candidate as dominated. It errs so often only about one that is
    equal to its rival in one objective and hopeless in the others, which the front does not miss.
    """

    items: float = 0.2
    confidence: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.items <= 1:
            raise UserError(f"racing.items is {self.items!r}; it must be a fraction in (0, 1], such as 0.2")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"racing.confidence is {self.confidence!r}; it must lie in [0.5, 1), such as 0.8")

    @classmethod
    def read(cls, given: Any) -> RacingSettings | None:
        """From what a study file says: ``true``, ``false`` or a mapping. Raises ``UserError``."""
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if not isinstance(given, Mapping):
            raise UserError(f"racing is {given!r}; write true, or a mapping such as {{items: 0.2, confidence: 0.8}}")
        known = ("items", "confidence")
        for key, value in given.items():
            if key not in known:
                raise UserError(f"racing: unknown key {key!r} {did_you_mean(str(key), known)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"racing.{key} is {value!r}; it must be a number")
        return cls(**given)

    def to_json(self) -> dict[str, float]:
        return {"items": self.items, "confidence": self.confidence}

    def rounds(self, total: int) -> list[int]:
        """How many of ``total`` items a candidate has answered after each round, ascending; the last is all."""
        share = self.share(total)
        sizes = [max(share // 4, FEWEST_ITEMS), max(share // 2, FEWEST_ITEMS), share]
        while sizes[-1] < total:
            sizes.append(2 * sizes[-1])
        return [min(size, total) for size in sizes]

    def share(self, total: int) -> int:
        """The fraction ``items`` of ``total`` items, at least ``FEWEST_ITEMS`` of them."""
        return min(total, max(math.ceil(self.items * total), FEWEST_ITEMS))


@dataclass(frozen=True)
class Race:
    """What one evaluation needs to know to race.

    ``anchors`` and ``others`` are the evaluations that are finished (anchors in the study's order, others
    without the anchors), with their items. ``is_anchor``: the candidate is an anchor itself and answers
    the fraction ``settings.items``.
    """

    settings: RacingSettings
    seed: int
    objectives: tuple[Objective, ...]
    anchors: tuple[Evaluation, ...] = ()
    others: tuple[Evaluation, ...] = ()
    is_anchor: bool = False

    def start(self, items: Mapping[str, Sequence[str]], exact: Mapping[str, float]) -> RaceRun:
        """The race over the items (ids) of each task; ``exact`` are objectives that no item decides."""
        return RaceRun(self, items, exact)


@dataclass(frozen=True)
class RaceResult:
    """Where a race ended: the objectives' estimates, the items answered (in the task's order) and why it stopped."""

    estimates: Mapping[str, Estimate]
    items: Mapping[str, ItemScores]
    details: Mapping[str, Any]


@dataclass
class _Answers:
    """What the candidate answered of one task so far, by item index."""

    scores: dict[int, float] = field(default_factory=dict)
    margins: dict[int, float] = field(default_factory=dict)


class RaceRun:
    """One candidate's race: ``batch`` says what to ask next, ``tell`` takes the answers, ``result`` sums up."""

    def __init__(self, race: Race, items: Mapping[str, Sequence[str]], exact: Mapping[str, float]) -> None:
        self.race = race
        self.exact = dict(exact)
        self.fields = {name: TaskField.of(race, name, ids) for name, ids in items.items()}
        self._answers = {name: _Answers() for name in items}
        self._rivals = _front(race)
        self._round = 0
        self._stopped: str | None = None

    def batch(self) -> dict[str, list[int]] | None:
        """Item indices to ask next, by task; None when the race is over."""
        if self._round > 0 and self._stopped is None:
            self._decide()
        if self._stopped is not None:
            return None
        self._round += 1
        return {name: self._next(name) for name in self.fields}

    def tell(self, name: str, indices: Sequence[int], scored: ItemScores) -> None:
        """The scores of the items that ``batch`` asked for, in its order."""
        answers = self._answers[name]
        answers.scores.update(zip(indices, scored.scores, strict=True))
        if scored.margins is not None:
            answers.margins.update(zip(indices, scored.margins, strict=True))

    def result(self) -> RaceResult:
        estimates, items = {}, {}
        for name, known in self.fields.items():
            answers = self._answers[name]
            estimates[name] = known.estimate(answers.scores)
            asked = sorted(answers.scores)
            items[name] = ItemScores(
                tuple(known.ids[index] for index in asked),
                tuple(answers.scores[index] for index in asked),
                tuple(answers.margins[index] for index in asked) if answers.margins else None,
            )
        details: dict[str, Any] = {
            "asked": {name: len(answers.scores) for name, answers in self._answers.items()},
            "of": {name: len(known.ids) for name, known in self.fields.items()},
            "stopped": self._stopped,
        }
        return RaceResult(estimates, items, {DETAILS: details})

    def _next(self, name: str) -> list[int]:
        known = self.fields[name]
        rounds = self.race.settings.rounds(len(known.ids))
        wanted = rounds[min(self._round, len(rounds)) - 1]
        if self.race.is_anchor:
            wanted = self.race.settings.share(len(known.ids))
        done = self._answers[name].scores
        return [index for index in known.order[:wanted] if index not in done]

    def _decide(self) -> None:
        """Whether to stop after the round that is finished, and why."""
        settings = self.race.settings
        asked = {name: len(answers.scores) for name, answers in self._answers.items()}
        if all(asked[name] == len(known.ids) for name, known in self.fields.items()):
            self._stopped = "all items"
        elif self.race.is_anchor:
            self._stopped = "anchor"
        elif self._dominated(settings.confidence):
            self._stopped = "dominated"
        elif all(asked[name] >= settings.share(len(known.ids)) for name, known in self.fields.items()):
            if self._dominated(None):
                self._stopped = "not on the front"
            elif not self._affordable():
                self._stopped = "budget of items"

    def _dominated(self, confidence: float | None) -> bool:
        """Whether one rival is better in every objective: with confidence, or (None) as estimated.

        All objectives must say so: an intersection-union test, whose error is the stated one only in the worst case
        (hopeless in all objectives but one, equal in that) and far smaller for a candidate that matches its rival.
        """
        level = None if confidence is None else 1.0 - confidence
        return any(self._loses(rival, level) for rival in self._rivals)

    def _loses(self, rival: Evaluation, level: float | None) -> bool:
        strictly = False
        for objective in self.race.objectives:
            name = objective.name
            if name in self.exact:
                change = objective.sign * (self.exact[name] - float(rival.scores[name]))
                if change > 0:
                    return False
                strictly = strictly or change < 0
                continue
            compared = self.fields[name].compare(self._answers[name].scores, rival, objective.sign)
            if compared is None or compared.mean > 0:
                return False
            if level is not None and (compared.mean == 0 or compared.p_value / 2.0 > level):
                return False
            strictly = strictly or compared.mean < 0
        return strictly

    def _affordable(self) -> bool:
        """Whether the next round keeps the search within its share of the items."""
        settings = self.race.settings
        finished = (*self.race.anchors, *self.race.others)
        paid = sum(len(one.items[name].ids) for one in finished for name in self.fields if name in one.items)
        for known in self.fields.values():
            rounds = settings.rounds(len(known.ids))
            paid += rounds[min(self._round + 1, len(rounds)) - 1]
        allowed = (len(finished) + 1) * sum(settings.share(len(known.ids)) for known in self.fields.values())
        return paid <= allowed


@dataclass(frozen=True)
class TaskField:
    """One task's items as a race sees them.

    ``order`` holds the items' indices in the order of asking. The first ``known`` of them were answered by all
    anchors: ``labels`` (their strata) and ``references`` (the anchors' scores) follow ``order``.
    """

    name: str
    ids: tuple[str, ...]
    order: tuple[int, ...]
    labels: NDArray[np.int64]
    references: Array | None

    @property
    def known(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, race: Race, name: str, ids: Sequence[str]) -> TaskField:
        base = random_order(ids, race.seed)
        answered = [
            dict(zip(one.items[name].ids, one.items[name].scores, strict=True))
            for one in race.anchors
            if name in one.items
        ]
        known = [index for index in base if all(ids[index] in scores for scores in answered)]
        if race.is_anchor or len(answered) < 2 or len(known) < FEWEST_ITEMS:
            return cls(name, tuple(ids), tuple(base), np.zeros(len(ids), dtype=np.int64), None)
        references = np.array([[scores[ids[index]] for index in known] for scores in answered])
        places, labels = informative_order(references, range(len(known)))
        rest = set(known)
        order = [known[place] for place in places] + [index for index in base if index not in rest]
        return cls(name, tuple(ids), tuple(order), labels[places], references[:, places])

    def estimate(self, scores: Mapping[int, float]) -> Estimate:
        """The mean over all items from the answered ones."""
        places = self._places(scores)
        values = np.array([scores[self.order[place]] for place in places])
        if places[-1] >= self.known:
            # Beyond what the anchors answered, all that was asked is a plain sample of all items.
            places = np.arange(len(self.order))[: len(places)]
            return estimate(values, places, np.zeros(len(self.order), dtype=np.int64), None, len(self.ids))
        return estimate(values, places, self.labels, self.references, len(self.ids))

    def compare(self, scores: Mapping[int, float], rival: Evaluation, sign: float) -> Difference | None:
        """Candidate minus rival over the items that both answered (positive: the candidate is better).

        None when there are fewer than two.
        """
        items = rival.items.get(self.name)
        if items is None:
            return None
        theirs = dict(zip(items.ids, items.scores, strict=True))
        places = np.array([place for place in self._places(scores) if self.ids[self.order[place]] in theirs], dtype=int)
        if len(places) < 2:
            return None
        first = np.array([sign * scores[self.order[place]] for place in places])
        second = np.array([sign * theirs[self.ids[self.order[place]]] for place in places])
        labels = self.labels
        if places[-1] >= self.known:
            places, labels = np.arange(len(places)), np.zeros(len(self.order), dtype=np.int64)
        return difference(first, second, places, labels, len(self.ids))

    def _places(self, scores: Mapping[int, float]) -> NDArray[np.int64]:
        return np.array([place for place, index in enumerate(self.order) if index in scores], dtype=np.int64)


def _front(race: Race) -> list[Evaluation]:
    """The finished evaluations that no other dominates, as estimated."""
    finished = [*race.anchors, *race.others]
    if not finished:
        return []
    rows = [[objective.sign * float(one.scores[objective.name]) for objective in race.objectives] for one in finished]
    return [one for one, kept in zip(finished, nondominated(rows), strict=True) if kept]
