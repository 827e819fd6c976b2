"""How two evaluations differ in an objective, and whether by more than noise."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import isclose, isfinite

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.scores.comparison import Difference, mean_interval, paired_difference, unpaired_difference
from mergefront.optimizer.scores.evaluation import RACED, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective

LEVEL = 0.05
"""Chance of any false "better" among all comparisons of one front."""
RESOLUTION = 1e-4
"""Share of a score below which a difference is none: merges that are one model differ by rounding, which no number of
items averages out, since it has the same direction in all of them."""


def scored_difference(objective: Objective, first: Evaluation, second: Evaluation) -> Difference:
    """``first`` minus ``second`` in one objective, positive where ``first`` is better; 0 below the resolution."""
    found = _measured_difference(objective, first, second)
    size = max(abs(float(one.scores[objective.name])) for one in (first, second))
    return found if abs(found.mean) > RESOLUTION * size else replace(found, mean=0.0)


def _measured_difference(objective: Objective, first: Evaluation, second: Evaluation) -> Difference:
    items, others = oriented_items(first, objective), oriented_items(second, objective)
    name = objective.name
    if items is not None and others is not None:
        raced = RACED in first.details or RACED in second.details
        here, there = _shared(first.items[name], second.items[name])
        if len(here) >= 2 and (raced or len(here) == len(items) == len(others)):
            return paired_difference(items[here], others[there])
    return unpaired_difference(
        objective.sign * float(first.scores[name]),
        first.standard_errors.get(name),
        objective.sign * float(second.scores[name]),
        second.standard_errors.get(name),
    )


def _shared(first: ItemScores, second: ItemScores) -> tuple[Integers, Integers]:
    """Where the items that both have are in the one and in the other, in the order of the first."""
    if first.ids is second.ids or first.ids == second.ids:
        every = np.arange(len(first.ids))
        return every, every
    found = [(index, second.positions[item]) for index, item in enumerate(first.ids) if item in second.positions]
    here, there = np.asarray(found, dtype=int).reshape(-1, 2).T
    return here, there


def leads(objectives: Sequence[Objective], first: Evaluation, second: Evaluation) -> tuple[list[str], list[str]]:
    """The objectives in which ``first``, and those in which ``second`` is the better beyond noise, as one pair."""
    ahead: list[str] = []
    behind: list[str] = []
    for objective in objectives:
        part = scored_difference(objective, first, second)
        if part.p_value < LEVEL:
            (ahead if part.mean > 0 else behind).append(objective.name)
    return ahead, behind


def beats(better: Collection[str], worse: Collection[str]) -> bool:
    """Whether one candidate beats another, by the objectives in which it is better and worse beyond noise."""
    return bool(better) and not worse


def better_beyond_noise(objectives: Sequence[Objective], evaluations: Sequence[Evaluation]) -> list[list[bool]]:
    """Whether evaluation i is better than evaluation j in some objective beyond noise (``n x n``)."""
    better = [[False] * len(evaluations) for _ in evaluations]
    for i, first in enumerate(evaluations):
        for j, second in enumerate(evaluations[:i]):
            better[i][j], better[j][i] = map(bool, leads(objectives, first, second))
    return better


def score_interval(objective: Objective, evaluation: Evaluation) -> tuple[float, float] | None:
    """The 95 % confidence interval of a score, from its items or its standard error; None where neither is known."""
    value = float(evaluation.scores[objective.name])
    items = oriented_items(evaluation, objective)
    error = evaluation.standard_errors.get(objective.name)
    if items is not None and RACED not in evaluation.details:
        low, high = mean_interval((objective.sign * items).tolist())
    else:
        low, high = value - 1.96 * (error or 0.0), value + 1.96 * (error or 0.0)
    return (low, high) if low < high and isfinite(high - low) else None


def oriented_items(evaluation: Evaluation, objective: Objective) -> Array | None:
    """Item scores of an objective, larger better, in the order of their ids.

    None when there are none, or when the objective is not their mean (a rank correlation, say).
    """
    items = evaluation.items.get(objective.name)
    if items is None or not items.scores:
        return None
    wanted = objective.sign * float(evaluation.scores[objective.name])
    signs = [sign for sign in (1.0, -1.0) if isclose(sign * items.mean, wanted, rel_tol=1e-6, abs_tol=1e-9)]
    if RACED in evaluation.details:
        # An estimate from a part of the items is not their mean; item scores are in the objective's own unit.
        signs = [objective.sign]
    return signs[0] * items.values if signs else None
