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
items. The estimate of the day is what a trial is told; ``Standings`` estimate anew from everything that was answered,
and that is what the next proposal is made from (``restated_trials``). Nothing here depends on anything but the
study, so that a resumed search asks the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import Field

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.racing.item_order import least_asked_first, stratified_order
from mergefront.optimizer.racing.noisy_front import likely_front
from mergefront.optimizer.racing.standings import AnsweredItems, Standings, TaskStandings, told
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

    ``finished`` are the evaluations that are there, with their items, in the order in which they finished; ``anchors``
    the places of the anchors among them. ``is_anchor``: the candidate is an anchor itself and answers the fraction
    ``settings.items``. ``standings`` keep what one race found for the next.
    """

    settings: RacingSettings
    seed: int
    objectives: tuple[Objective, ...]
    finished: tuple[Evaluation, ...] = ()
    anchors: tuple[int, ...] = ()
    is_anchor: bool = False
    standings: Standings = field(default_factory=Standings, compare=False, repr=False)

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
        self._estimates: dict[str, Estimate] = {}
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
            estimates[name] = self._estimated(name)
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

    def _estimated(self, name: str) -> Estimate:
        """The candidate's estimate of one task by now."""
        if name not in self._estimates:
            self._estimates[name] = self.fields[name].estimate(self._answers[name])
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
        elif self._loses():
            self._stopped = "dominated"

    def _loses(self) -> bool:
        """Whether a rival is better in every objective, item by item, each with the stated confidence.

        All objectives must say so: an intersection-union test, whose error is the stated one only in the worst case
        (hopeless in all objectives but one, equal in that) and far smaller for a candidate that matches its rival.
        """
        finished, others = self.race.finished, np.ones(len(self.race.finished), dtype=bool)
        better = np.zeros(len(finished), dtype=bool)
        paired: dict[str, tuple[Array, Array]] = {}
        for objective in self.race.objectives:
            name, sign = objective.name, objective.sign
            if name in self.exact:
                change = sign * (self.exact[name] - np.array([float(one.scores[name]) for one in finished]))
                others &= change <= 0
                better |= change < 0
            else:
                paired[name] = self.fields[name].paired(self._answers[name].scores, sign)
                ours, theirs = paired[name]
                both = ~np.isnan(theirs)
                others &= (both.sum(axis=1) >= 2) & (np.where(both, ours - theirs, 0.0).sum(axis=1) < 0)
                better[:] = True
        level = 1.0 - self.race.settings.confidence
        return any(
            all(
                self.fields[name].compared(ours, theirs[rival]).p_value / 2.0 <= level
                for name, (ours, theirs) in paired.items()
            )
            for rival in np.flatnonzero(others & better)
        )

    def _on_the_front(self) -> bool:
        """Whether the candidate is on the front by everybody's estimates of now."""
        finished = self.race.finished
        rows: list[dict[str, Estimate]] = [{} for _ in (*finished, self)]
        for objective in self.race.objectives:
            name = objective.name
            known = self.fields[name].estimates if name in self.fields else [None] * len(finished)
            own = self._estimated(name) if name in self.fields else Estimate(self.exact[name], 0.0)
            for row, one, estimate in zip(rows, finished, known, strict=False):
                row[name] = told(name, one) if estimate is None else estimate
            rows[-1][name] = own
        return raced_front(self.race.objectives, rows, slice(-1, None))[0]

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

    ``order`` holds the items' indices in the order of asking, ``columns`` their columns in the ``standings``.
    """

    ids: tuple[str, ...]
    order: tuple[int, ...]
    columns: Integers
    standings: TaskStandings

    @classmethod
    def of(cls, race: ItemRace, name: str, ids: Sequence[str]) -> TaskField:
        ids, standings = tuple(ids), race.standings.task(name, race.finished)
        columns, base = standings.order(ids, race.seed)
        if race.is_anchor:
            return cls(ids, base, columns, standings)
        core, size = race.settings.rounds(len(ids))[:2]
        anchors = standings.scores(columns, race.anchors)
        by_all = np.asarray((~np.isnan(anchors)).all(axis=0)) if len(anchors) else np.zeros(len(ids), dtype=bool)
        known = [index for index, kept in zip(base, by_all[list(base)].tolist(), strict=True) if kept]
        if len(anchors) >= 2 and len(known) >= core:
            first = [known[place] for place in stratified_order(anchors[:, known])][:core]
        else:
            first = list(base[:core])
        everybody = set(first)
        rest = [index for index in base if index not in everybody]
        asked = standings.times_asked()[columns]
        order = [*first, *least_asked_first(rest, asked, size, race.seed, len(race.finished))]
        return cls(ids, tuple(order), columns, standings)

    @property
    def estimates(self) -> list[Estimate | None]:
        """The means over all items of every finished evaluation that has answers."""
        return self.standings.estimates(len(self.ids))

    def estimate(self, answers: _Answers) -> Estimate:
        """The candidate's with these answers."""
        margins = np.array(list(answers.margins.values())) if len(answers.margins) == len(answers.scores) else None
        own = AnsweredItems(self.columns[list(answers.scores)], np.array(list(answers.scores.values())), margins)
        return self.standings.estimate(len(self.ids), own)

    def paired(self, scores: Mapping[int, float], sign: float) -> tuple[Array, Array]:
        """The candidate's scores (n), larger being better, and every rival's on the same items (k x n, NaN where it was
        not asked)."""
        asked = [index for index in self.order if index in scores]
        theirs = self.standings.scores(self.columns[asked])
        return sign * np.array([scores[index] for index in asked]), sign * theirs

    def compared(self, ours: Array, theirs: Array) -> Difference:
        """First minus second over the items that both answered; its error is that of a sample of the task's items."""
        both = ~np.isnan(theirs)
        found = paired_difference(ours[both], theirs[both])
        finite = math.sqrt(1.0 - int(both.sum()) / len(self.ids))
        return replace(found, standard_error=found.standard_error * finite, discordant=None)


def raced_front(
    objectives: Sequence[Objective], estimates: Sequence[Mapping[str, Estimate]], of: slice = slice(None)
) -> list[bool]:
    """Which of the candidates, or of some, are on the front as far as is known (``noisy_front``)."""
    rows = [[row[objective.name] for objective in objectives] for row in estimates]
    means = [[objective.sign * one.mean for objective, one in zip(objectives, row, strict=True)] for row in rows]
    return likely_front(means, [[one.unasked_error for one in row] for row in rows], of)
