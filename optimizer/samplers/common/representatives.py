"""Observed trials that stand for all of them, when there are more than a surrogate can be fitted to while a user waits.

A Gaussian process on n points costs n^3 operations and n^2 numbers, and the front's boxes grow with the front. Up to
``MOST_OBSERVED`` observed trials nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import moocore
import numpy as np
from optuna.trial import FrozenTrial

from mergefront.optimizer.arrays import Array, Integers, Mask
from mergefront.optimizer.samplers.common.history import History
from mergefront.optimizer.search.attributes import is_anchor, is_feasible, is_outside_space

MOST_OBSERVED = 320
"""Chosen by hand for proposals within seconds; what it costs is measured in docs/benchmarks/operations.md."""


def limited(history: History, maximise: Sequence[bool], most: int = MOST_OBSERVED) -> History:
    """The history with at most ``most`` observed trials besides anchors and those outside the space.

    Members of the front that had to be left out, at most half as many, are ``front_beyond``: proposals have to improve
    on them all the same.
    """
    always: list[FrozenTrial] = []
    others: list[FrozenTrial] = []
    for trial in history.observed:
        (always if is_anchor(trial) or is_outside_space(trial) else others).append(trial)
    if len(others) <= most:
        return history
    sign = np.where(maximise, 1.0, -1.0)
    values = sign * np.array([trial.values for trial in others], dtype=float)
    kept, beyond = representatives(values, np.array([is_feasible(trial) for trial in others]), most)
    observed = sorted([*always, *(others[i] for i in kept)], key=lambda trial: trial.number)
    return replace(history, observed=tuple(observed), front_beyond=tuple(others[i] for i in beyond))


def representatives(values: Array, feasible: Mask, most: int) -> tuple[Integers, Integers]:
    """Which of ``values`` (``n x m``, maximised, n > most) stand for all, and what else is on the front: indexes.

    Half of the first are the best feasible ones, front after front (non-dominated sorting); a front that does not fit
    whole is thinned out evenly. A quarter are the last of the rest: what was just proposed and disappointed must not
    be proposed again. A quarter is taken at equal steps from what is left, in order of time, so that the surrogate also
    knows where nothing is to be found. The second are at most ``most / 2``.
    """
    good = np.flatnonzero(feasible)
    ranks = moocore.pareto_rank(-values[good]) if len(good) else np.zeros(0, dtype=int)
    best: list[int] = []
    beyond: Integers = np.zeros(0, dtype=int)
    for rank in range(int(ranks.max()) + 1 if len(ranks) else 0):
        front = good[ranks == rank]
        room = most // 2 - len(best)
        if len(front) > room:
            order = front[spread_order(values[front], room + (most // 2 if rank == 0 else 0))]
            best.extend(order[:room].tolist())
            beyond = order[room:]
            break
        best.extend(front.tolist())
    rest = np.setdiff1d(np.arange(len(values)), best)
    older, newest = np.split(rest, [len(rest) - (most - len(best)) // 2])
    steps = np.linspace(0, len(older) - 1, most - len(best) - len(newest)).round().astype(int)
    kept = np.concatenate([best, older[steps], newest]).astype(int)
    return np.sort(kept), np.setdiff1d(beyond, kept)


def spread_order(values: Array, count: int) -> Integers:
    """Integers of ``count`` rows of ``values`` (``n x m``), each as far as can be from those before it.

    The first is the one with the largest sum; objectives are scaled to their range.
    """
    spans = np.ptp(values, axis=0)
    scaled = values / np.where(spans > 0, spans, 1.0)
    chosen = [int(np.argmax(scaled.sum(axis=1)))]
    distance = np.full(len(values), np.inf)
    for _ in range(min(count, len(values)) - 1):
        distance = np.minimum(distance, ((scaled - scaled[chosen[-1]]) ** 2).sum(axis=1))
        distance[chosen[-1]] = -1.0
        chosen.append(int(np.argmax(distance)))
    return np.array(chosen[:count], dtype=int)
