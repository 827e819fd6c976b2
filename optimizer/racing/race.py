"""Racing: ask a candidate only as many items as it takes to know what to do with it.

The anchors answer a fraction ``items`` of every task's items. A candidate first answers a part of those, the
core, which everybody answers (a quarter of the fraction); then items of its own, those that were asked least so far
(``item_order``):

- it stops in the core as soon as a candidate that was evaluated before is better in every objective, by paired
  comparison over the items that both answered, with the stated confidence;
- it stops at the fraction ``items`` when it is not on the front as it is known by then;
- otherwise it goes on, up to all items, as long as the search has not paid more than the fraction
  ``items`` of what full evaluation would have cost: what early stops saved is spent on the front.

What all candidates answered goes into one model (``joint_scores``), which estimates every candidate's scores on all
items. The estimate of the day is what a trial is told; ``standings`` estimates anew from everything that was answered,
and that is what the next proposal is made from (``restated_trials``). Nothing here depends on anything but the
study, so that a resumed search asks the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.racing.item_order import least_asked_first, random_order, stratified_order
from mergefront.optimizer.racing.joint_scores import joint_estimates
from mergefront.optimizer.racing.noisy_front import likely_front
from mergefront.optimizer.scores.comparison import Difference, paired_difference
from mergefront.optimizer.scores.evaluation import RACED, Estimate, Evaluation, ItemScores, RaceResult
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.sections import Options, checked

FEWEST_ITEMS = 16
"""A candidate that is not dropped early is asked at least so many of a task's items: fewer say too little."""
FEWEST_TO_RACE = 2 * FEWEST_ITEMS
"""Of a task with fewer items every candidate is asked all: racing would save less than half of them."""


class RacingSettings(Options):
    """How a search races.

    ``items``: fraction of the items in (0, 1] that the search pays on average per candidate, at most, and that
    each anchor answers. ``confidence``, in [0.5, 1): a comparison with one rival in one round errs no more
    often than 1 - ``confidence`` when it stops a candidate as dominated. It errs so often only about one that is
    equal to its rival in one objective and hopeless in the others, which the front does not miss.
    """

    items: float = Field(default=0.2, gt=0, le=1, description="the fraction of items that a candidate pays, on average")
    confidence: float = Field(
        default=0.95, ge=0.5, lt=1, description="of a comparison that stops a candidate as dominated by a rival"
    )

    @classmethod
    def read(cls, given: bool | Mapping[str, Any] | RacingSettings | None) -> RacingSettings | None:
        """From ``true``, ``false`` or a mapping. Raises ``UserError``."""
        if given is None or given is False or isinstance(given, RacingSettings):
            return given or None
        if given is not True and not isinstance(given, Mapping):
            raise UserError(f"racing is {given!r}; write true, or a mapping such as {{items: 0.2, confidence: 0.95}}")
        return checked(cls, {} if given is True else given, "racing")

    def rounds(self, total: int) -> list[int]:
        """How many of ``total`` items a candidate has answered after each round, ascending; the last is all.

        The first is the core.
        """
        share = self.share(total)
        sizes = [share // 4, share // 2, share] if total >= FEWEST_TO_RACE else [total] * 3
        while sizes[-1] < total:
            sizes.append(2 * sizes[-1])
        return [min(size, total) for size in sizes]

    def share(self, total: int) -> int:
        """The fraction ``items`` of ``total`` items, at least ``FEWEST_ITEMS``; all where these are too few to race."""
        return max(math.ceil(self.items * total), FEWEST_ITEMS) if total >= FEWEST_TO_RACE else total


@dataclass(frozen=True)
class ItemRace:
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

    @property
    def finished(self) -> tuple[Evaluation, ...]:
        """Everything that is finished, anchors first."""
        return (*self.anchors, *self.others)

    def start(self, items: Mapping[str, Sequence[str]], exact: Mapping[str, float]) -> ItemRaceRun:
        """The race over the items (ids) of each task; ``exact`` are objectives that no item decides."""
        return ItemRaceRun(self, items, exact)


@dataclass
class _Answers:
    """What the candidate answered of one task so far, by item index."""

    scores: dict[int, float] = field(default_factory=dict)
    margins: dict[int, float] = field(default_factory=dict)


class ItemRaceRun:
    """One candidate's race: ``batch`` says what to ask next, ``tell`` takes the answers, ``result`` sums up."""

    def __init__(self, race: ItemRace, items: Mapping[str, Sequence[str]], exact: Mapping[str, float]) -> None:
        self.race = race
        self.exact = dict(exact)
        self.fields = {name: TaskField.of(race, name, ids) for name, ids in items.items()}
        self._answers = {name: _Answers() for name in items}
        self._estimates: dict[str, list[Estimate]] = {}
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
        self._estimates.pop(name, None)
        answers = self._answers[name]
        answers.scores.update(zip(indices, scored.scores, strict=True))
        if scored.margins is not None:
            answers.margins.update(zip(indices, scored.margins, strict=True))

    def result(self) -> RaceResult:
        estimates, items = {}, {}
        for name, known in self.fields.items():
            answers = self._answers[name]
            estimates[name] = self._estimated(name)[-1]
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
        return RaceResult(estimates, items, {RACED: details})

    def _estimated(self, name: str) -> list[Estimate]:
        """Everybody's estimates of one task by now."""
        if name not in self._estimates:
            self._estimates[name] = self.fields[name].estimates(self._answers[name])
        return self._estimates[name]

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
        elif all(asked[name] >= settings.share(len(known.ids)) for name, known in self.fields.items()):
            if not self._on_the_front():
                self._stopped = "not on the front"
            elif not self._affordable():
                self._stopped = "budget of items"
        elif any(self._loses(rival) for rival in self.race.finished):
            self._stopped = "dominated"

    def _loses(self, rival: Evaluation) -> bool:
        """Whether ``rival`` is better in every objective, item by item, each with the stated confidence.

        All objectives must say so: an intersection-union test, whose error is the stated one only in the worst case
        (hopeless in all objectives but one, equal in that) and far smaller for a candidate that matches its rival.
        """
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
            if compared is None or compared.mean >= 0:
                return False
            if compared.p_value / 2.0 > 1.0 - self.race.settings.confidence:
                return False
            strictly = True
        return strictly

    def _on_the_front(self) -> bool:
        """Whether the candidate is on the front by everybody's estimates of now."""
        finished = self.race.finished
        rows: list[dict[str, Estimate]] = [{} for _ in (*finished, self)]
        for objective in self.race.objectives:
            name = objective.name
            if name in self.fields:
                column = self._estimated(name)
            else:
                column = [*(_told(name, one) for one in finished), Estimate(self.exact[name], 0.0)]
            for row, one in zip(rows, column, strict=True):
                row[name] = one
        return raced_front(self.race.objectives, rows)[-1]

    def _affordable(self) -> bool:
        """Whether the next round keeps the search within its share of the items."""
        settings = self.race.settings
        finished = self.race.finished
        paid = sum(len(one.items[name].ids) for one in finished for name in self.fields if name in one.items)
        for known in self.fields.values():
            rounds = settings.rounds(len(known.ids))
            paid += rounds[min(self._round + 1, len(rounds)) - 1]
        allowed = (len(finished) + 1) * sum(settings.share(len(known.ids)) for known in self.fields.values())
        return paid <= allowed


@dataclass(frozen=True)
class TaskField:
    """One task's items as a race sees them.

    ``order`` holds the items' indices in the order of asking. ``rivals`` is what the finished evaluations answered, a
    row each, the items in the task's order; ``told`` what they were told to score.
    """

    name: str
    ids: tuple[str, ...]
    order: tuple[int, ...]
    rivals: _Answered
    told: tuple[Estimate, ...]

    @classmethod
    def of(cls, race: ItemRace, name: str, ids: Sequence[str]) -> TaskField:
        rivals = _answered(name, ids, race.finished)
        told = tuple(_told(name, one) for one in race.finished)
        base = random_order(ids, race.seed)
        if race.is_anchor:
            return cls(name, tuple(ids), tuple(base), rivals, told)
        core, size = race.settings.rounds(len(ids))[:2]
        anchors = rivals.scores[: len(race.anchors)]
        known = [index for index in base if len(anchors) and not np.isnan(anchors[:, index]).any()]
        if len(anchors) >= 2 and len(known) >= core:
            first = [known[place] for place in stratified_order(anchors[:, known])][:core]
        else:
            first = base[:core]
        everybody = set(first)
        rest = [index for index in base if index not in everybody]
        asked = (~np.isnan(rivals.scores)).sum(axis=0)
        order = [*first, *least_asked_first(rest, asked, size, race.seed, len(race.finished))]
        return cls(name, tuple(ids), tuple(order), rivals, told)

    def estimates(self, answers: _Answers) -> list[Estimate]:
        """The means over all items of every finished evaluation and, last, of the candidate with these answers."""
        own = [np.full((1, len(self.ids)), np.nan) for _ in range(2)]
        for row, given in zip(own, (answers.scores, answers.margins), strict=True):
            row[0, list(given)] = list(given.values())
        return _estimates(self.rivals.and_those_of(_Answered(*own)), [*self.told, Estimate(0.0, 0.0)])

    def compare(self, scores: Mapping[int, float], rival: Evaluation, sign: float) -> Difference | None:
        """Candidate minus rival over the items that both answered (positive: the candidate is better).

        None when there are fewer than two. The standard error is that of a sample of the task's items.
        """
        items = rival.items.get(self.name)
        if items is None:
            return None
        theirs = dict(zip(items.ids, items.scores, strict=True))
        both = [index for index in self.order if index in scores and self.ids[index] in theirs]
        if len(both) < 2:
            return None
        found = paired_difference([sign * scores[i] for i in both], [sign * theirs[self.ids[i]] for i in both])
        finite = math.sqrt(1.0 - len(both) / len(self.ids))
        return Difference(found.mean, found.standard_error * finite, found.degrees_of_freedom, found.pairs)


def standings(objectives: Sequence[Objective], evaluations: Sequence[Evaluation]) -> list[dict[str, Estimate]]:
    """Every raced evaluation's objectives, estimated anew from what all of them answered.

    What was not raced, or has no items, stays as it was told.
    """
    found: list[dict[str, Estimate]] = [{} for _ in evaluations]
    for objective in objectives:
        name = objective.name
        raced = [one for one in evaluations if RACED in one.details]
        ids = dict.fromkeys(item for one in evaluations if name in one.items for item in one.items[name].ids)
        told = [_told(name, one) for one in evaluations]
        total = max((int(one.details[RACED]["of"].get(name, 0)) for one in raced), default=0)
        if total:
            rows = _answered(name, tuple(ids), evaluations)
            told = _estimates(rows.with_unasked(total - len(ids)), told)
        for estimates, one in zip(found, told, strict=True):
            estimates[name] = one
    return found


def raced_front(objectives: Sequence[Objective], estimates: Sequence[Mapping[str, Estimate]]) -> list[bool]:
    """Which of the candidates are on the front as far as is known (``noisy_front``)."""
    rows = [[row[objective.name] for objective in objectives] for row in estimates]
    means = [[objective.sign * one.mean for objective, one in zip(objectives, row, strict=True)] for row in rows]
    return likely_front(means, [[one.unasked_error for one in row] for row in rows])


@dataclass(frozen=True)
class _Answered:
    """``scores`` and ``margins`` (k x n, NaN where there is none) of n items by k evaluations."""

    scores: Array
    margins: Array

    def and_those_of(self, other: _Answered) -> _Answered:
        """These evaluations, then the others."""
        return _Answered(np.vstack([self.scores, other.scores]), np.vstack([self.margins, other.margins]))

    def with_unasked(self, items: int) -> _Answered:
        """The same with so many items more, which nobody answered."""
        nobody = np.full((len(self.scores), max(items, 0)), np.nan)
        return _Answered(np.hstack([self.scores, nobody]), np.hstack([self.margins, nobody]))


def _answered(name: str, ids: Sequence[str], evaluations: Sequence[Evaluation]) -> _Answered:
    """What the evaluations answered of the task's items ``ids``."""
    place = {item: index for index, item in enumerate(ids)}
    found = _Answered(*(np.full((len(evaluations), len(ids)), np.nan) for _ in range(2)))
    for row, one in enumerate(evaluations):
        items = one.items.get(name)
        if items is None:
            continue
        known = [number for number, item in enumerate(items.ids) if item in place]
        columns = [place[items.ids[number]] for number in known]
        found.scores[row, columns] = [items.scores[number] for number in known]
        if items.margins is not None:
            found.margins[row, columns] = [items.margins[number] for number in known]
    return found


def _estimates(rows: _Answered, told: Sequence[Estimate]) -> list[Estimate]:
    """``joint_estimates`` of the evaluations (rows) that have answers, and what was ``told`` of the others."""
    places = np.flatnonzero((~np.isnan(rows.scores)).any(axis=1))
    estimates = list(told)
    for place, one in zip(places, joint_estimates(rows.scores[places], rows.margins[places]), strict=True):
        estimates[place] = one
    return estimates


def _told(name: str, evaluation: Evaluation) -> Estimate:
    """An objective's score as it stands in an evaluation."""
    error = evaluation.standard_errors.get(name)
    return Estimate(float(evaluation.scores[name]), 0.0 if error is None else float(error))
