"""What the candidates of a race score on all items by now, kept up to date as evaluations come in.

A model of a task's answers is fitted to the candidates that finished first; later ones, at most a tenth as many, are
read with it (``joint_scores``). So most trials cost no fit, however long the study. What is kept here only saves time:
estimates depend on the evaluations and their order alone, and a resumed search estimates the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.racing.item_order import random_order
from mergefront.optimizer.racing.joint_scores import JointModel, decisive, plain_estimates
from mergefront.optimizer.scores.evaluation import RACED, Estimate, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective

ALL_FITTED = 20
"""Of so many candidates a model is fitted anew after each."""
READ = 10
"""Of more, after one for so many that were fitted."""


def fitted(count: int) -> int:
    """How many of so many candidates a model is fitted to: numbers that grow by a tenth."""
    size = min(count, ALL_FITTED)
    while size >= ALL_FITTED and size + size // READ <= count:
        size += size // READ
    return size


@dataclass(frozen=True)
class AnsweredItems:
    """The scores and margins that a candidate gave, and their items' columns (n each)."""

    columns: Integers
    scores: Array
    margins: Array | None

    @cached_property
    def decisive(self) -> bool:
        """Whether the margins say what the scores are."""
        return self.margins is not None and decisive(self.scores, self.margins)


class TaskStandings:
    """One task's answers by all candidates, in the order in which these finished, and what they say of their scores."""

    def __init__(self) -> None:
        self.given: list[ItemScores | None] = []
        self._columns: dict[str, int] = {}
        self._everybody: list[AnsweredItems] = []
        self._rows: list[AnsweredItems] = []
        self._order: tuple[tuple[str, ...], int, Integers, tuple[int, ...]] | None = None
        self._model: JointModel | None = None
        self._model_of: tuple[int, int, bool] | None = None
        self._read: dict[int, Estimate] = {}

    def add(self, items: ItemScores | None) -> None:
        """The answers of one more candidate; None where it has none."""
        answers = items or ItemScores((), ())
        margins = None if answers.margins is None else np.asarray(answers.margins, dtype=float)
        row = AnsweredItems(self.columns(answers.ids), answers.values, margins)
        self.given.append(items)
        self._everybody.append(row)
        if len(row.columns):
            self._rows.append(row)

    def columns(self, ids: Sequence[str]) -> Integers:
        """Those of items, by their ids."""
        known = self._columns
        return np.array([known.setdefault(one, len(known)) for one in ids], dtype=np.int64)

    def order(self, ids: tuple[str, ...], seed: int) -> tuple[Integers, tuple[int, ...]]:
        """The columns of the task's items, and the items' random order: the same for every candidate."""
        if self._order is None or self._order[:2] != (ids, seed):
            self._order = (ids, seed, self.columns(ids), tuple(random_order(ids, seed)))
        return self._order[2:]

    def scores(self, columns: Integers, candidates: Sequence[int] | None = None) -> Array:
        """What candidates, or some, scored on the items of some columns (k x n, NaN where they were not asked)."""
        rows = self._everybody if candidates is None else [self._everybody[place] for place in candidates]
        return self._table(rows, columns)[0]

    def times_asked(self) -> Integers:
        """How many candidates answered the item of each column."""
        columns = [np.empty(0, dtype=np.int64), *(row.columns for row in self._rows)]
        return np.bincount(np.concatenate(columns), minlength=len(self._columns))

    def estimates(self, items: int) -> list[Estimate | None]:
        """Of every candidate with answers, on all of so many items, or as many as were answered."""
        if items < len(self._columns):
            items = max(items, int((self.times_asked() > 0).sum()))
        model = self._model_for(items, self._rows)
        if model is None:
            found = iter(self._plain(self._rows, items))
        else:
            later = range(len(model.estimates), len(self._rows))
            for place in later:
                if place not in self._read:
                    self._read[place] = _read(model, self._rows[place])
            found = iter([*model.estimates, *(self._read[place] for place in later)])
        return [next(found) if len(one.columns) else None for one in self._everybody]

    def estimate(self, items: int, own: AnsweredItems) -> Estimate:
        """Of a candidate that is not among these."""
        rows = [*self._rows, own]
        model = self._model_for(items, rows)
        return self._plain(rows, items)[-1] if model is None else _read(model, own)

    def _model_for(self, items: int, rows: Sequence[AnsweredItems]) -> JointModel | None:
        """The model for the estimates of these rows; None where they need none, or say nothing of each other."""
        if all(len(row.columns) == items for row in rows):
            return None
        wanted = (fitted(len(self._rows)), items, all(row.decisive for row in rows))
        if wanted != self._model_of:
            # Sorted, so that a model does not depend on who answered an item first.
            ids = np.array(list(self._columns))
            table = self._table(self._rows[: wanted[0]], order := np.argsort(ids))
            model = JointModel.of(table[0], table[1] if wanted[2] else None, items)
            self._model = None if model is None else replace(model, places=order[model.places])
            self._model_of, self._read = wanted, {}
        return self._model

    def _plain(self, rows: Sequence[AnsweredItems], items: int) -> list[Estimate]:
        return plain_estimates(self._table(rows, np.arange(len(self._columns)))[0], items) if rows else []

    def _table(self, rows: Sequence[AnsweredItems], columns: Integers) -> tuple[Array, Array]:
        """Scores and margins (k x n, NaN where there is none) of some rows in these columns."""
        place = np.full(len(self._columns), -1)
        place[columns] = np.arange(len(columns))
        found = [np.full((len(rows), len(columns)), np.nan) for _ in range(2)]
        for number, row in enumerate(rows):
            places = place[row.columns]
            kept = places >= 0
            for table, answers in zip(found, (row.scores, row.margins), strict=True):
                if answers is not None:
                    table[number, places[kept]] = answers[kept]
        return found[0], found[1]


class EvaluationSource(Protocol):
    """Where evaluations are kept (``Ledger``)."""

    def evaluations_beside(self, known: Mapping[str, Evaluation]) -> dict[str, Evaluation]: ...


class Standings:
    """All tasks' standings of one study, by what was evaluated up to now."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskStandings] = {}
        self._evaluations: dict[str, Evaluation] = {}

    def read_from(self, ledger: EvaluationSource) -> dict[str, Evaluation]:
        """Every finished evaluation with its items, by its recipe's digest; each is read once."""
        self._evaluations = ledger.evaluations_beside(self._evaluations)
        return self._evaluations

    def task(self, name: str, evaluations: Sequence[Evaluation]) -> TaskStandings:
        """One task's, of evaluations in the order in which they finished."""
        given = [one.items.get(name) for one in evaluations]
        task = self._tasks.setdefault(name, TaskStandings())
        if task.given != given[: len(task.given)]:
            task = self._tasks[name] = TaskStandings()
        for items in given[len(task.given) :]:
            task.add(items)
        return task

    def of(self, objectives: Sequence[Objective], evaluations: Sequence[Evaluation]) -> list[dict[str, Estimate]]:
        """Every raced evaluation's objectives, estimated anew from what all of them answered.

        What was not raced, or has no items, stays as it was told.
        """
        found: list[dict[str, Estimate]] = [{} for _ in evaluations]
        for name in (objective.name for objective in objectives):
            total = max(
                (int(one.details[RACED]["of"].get(name, 0)) for one in evaluations if RACED in one.details), default=0
            )
            estimates = self.task(name, evaluations).estimates(total) if total else [None] * len(evaluations)
            for row, one, estimate in zip(found, evaluations, estimates, strict=True):
                row[name] = told(name, one) if estimate is None else estimate
        return found


def told(name: str, evaluation: Evaluation) -> Estimate:
    """An objective's score as it stands in an evaluation."""
    error = evaluation.standard_errors.get(name)
    return Estimate(float(evaluation.scores[name]), 0.0 if error is None else float(error))


def _read(model: JointModel, row: AnsweredItems) -> Estimate:
    return model.read(row.columns, row.scores, row.margins)
