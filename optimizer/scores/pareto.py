"""The Pareto front and the hypervolume, in the normalised unit system (all objectives maximised)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import ArrayLike

from mergefront.optimizer.arrays import Array, Integers, Mask

MOST_EXACT = 6
"""Objectives of an exact hypervolume: with 8 and 500 points it takes 10 s, the estimate 0.2 s."""
_BATCHES = 8
_DIRECTIONS = 65_536


@dataclass(frozen=True)
class Hypervolume:
    """A hypervolume and the standard error of its estimate; 0 where it is exact."""

    value: float = 0.0
    standard_error: float = 0.0


def nondominated(points: ArrayLike) -> Mask:
    """Which of ``n x m`` maximised points no other dominates (``n``; of equal points all are kept)."""
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(values, maximise=True, keep_weakly=True), dtype=bool)


def nondominated_ranks(points: ArrayLike) -> Integers:
    """The front of each of ``n x m`` maximised points (``n``): 0 where none dominates it, 1 where only those do, ...

    Equal points share a rank (Deb et al. 2002, as moocore sorts them).
    """
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        return np.zeros(0, dtype=int)
    return np.asarray(moocore.pareto_rank(values, maximise=True), dtype=int)


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """Volume dominated by ``n x m`` maximised points above ``reference`` (``m``); exact (moocore)."""
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        return 0.0
    return float(moocore.hypervolume(values, ref=np.asarray(reference, dtype=float), maximise=True))


def measured_hypervolume(points: ArrayLike, reference: Sequence[float]) -> Hypervolume:
    """The hypervolume of ``n x m`` maximised points: exact up to ``MOST_EXACT`` objectives, above that estimated.

    Monte Carlo over directions (Deng and Zhang 2019, as moocore has it). They are the same at each call, so that a
    point more never makes less of it. The error is from the spread of batches.
    """
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0 or values.shape[1] <= MOST_EXACT:
        return Hypervolume(hypervolume(values, reference))
    given = {"ref": np.asarray(reference, dtype=float), "maximise": True, "method": "DZ2019-MC"}
    batches = [float(moocore.hv_approx(values, nsamples=_DIRECTIONS, seed=seed, **given)) for seed in range(_BATCHES)]
    return Hypervolume(float(np.mean(batches)), float(np.std(batches, ddof=1)) / math.sqrt(_BATCHES))


class HypervolumeSoFar:
    """The hypervolume of points that come one after another, measured anew only where one changed the front."""

    def __init__(self, reference: Sequence[float]) -> None:
        self._reference = np.asarray(reference, dtype=float)
        self._front = np.empty((0, len(self._reference)))
        self._measured: Hypervolume | None = Hypervolume()

    def add(self, point: ArrayLike) -> None:
        """One more maximised point (``m``)."""
        new = np.asarray(point, dtype=float)
        if (new <= self._reference).any() or (self._front >= new).all(axis=1).any():
            return
        self._front = np.vstack([self._front[~(new >= self._front).all(axis=1)], new])
        self._measured = None

    @property
    def measured(self) -> Hypervolume:
        """Of all points so far."""
        if self._measured is None:
            self._measured = measured_hypervolume(self._front, self._reference.tolist())
        return self._measured


def hypervolume_contributions(points: ArrayLike, reference: Sequence[float]) -> Array:
    """What each of ``n x m`` points adds to the hypervolume of all of them (``n``)."""
    values = np.atleast_2d(np.asarray(points, dtype=float))
    total = hypervolume(values, reference)
    rest = [hypervolume(np.delete(values, index, axis=0), reference) for index in range(len(values))]
    return total - np.asarray(rest, dtype=float)


def knee(points: ArrayLike) -> int:
    """Index of the knee of a front (``n x m``, maximised).

    The point farthest above the hyperplane through the front's extremes, after scaling each
    objective to [0, 1] on the front: with equal scaling this is the largest sum. Raises
    ``ValueError`` for an empty front.
    """
    values, spread = _with_spread(points)
    return int(np.argmax(((values - values.min(axis=0)) / spread).sum(axis=1)))


def preferred(points: ArrayLike, weights: Sequence[float]) -> int:
    """Index of the point of a front (``n x m``, maximised) that a user with these weights picks.

    Augmented Chebyshev distance to the ideal point after scaling each objective to [0, 1] on the
    front (Steuer and Choo 1983): it can reach every point of the front, a weighted sum cannot.
    """
    values, spread = _with_spread(points)
    missing = (values.max(axis=0) - values) / spread
    scale = np.asarray(weights, dtype=float) / max(float(np.sum(weights)), 1e-12)
    return int(np.argmin((missing * scale).max(axis=1) + 0.01 * (missing * scale).sum(axis=1)))


def along(points: ArrayLike, direction: Sequence[float]) -> int:
    """Index of the point of a front (``n x m``, maximised) that lies farthest along a reference direction (``m``).

    From the corner of the front's worst values the direction says how much of each objective is wanted for how much of
    the others, each scaled to [0, 1] on the front; the point wins whose smallest gain per unit of direction is the
    largest (the achievement function of Wierzbicki 1980). Objectives with 0 do not count. Raises ``ValueError`` for
    an empty front and for a direction that is negative somewhere or 0 everywhere.
    """
    values, spread = _with_spread(points)
    wanted = np.asarray(direction, dtype=float)
    if not (np.isfinite(wanted) & (wanted >= 0)).all() or not wanted.any():
        raise ValueError(f"direction {list(direction)} must be numbers of at least 0, not all 0")
    gains = (values - values.min(axis=0)) / spread
    counted = wanted > 0
    reach = gains[:, counted] / wanted[counted]
    return int(np.argmax(reach.min(axis=1) + 1e-3 * reach.mean(axis=1)))


def _with_spread(points: ArrayLike) -> tuple[Array, Array]:
    """A front (``n x m``) and each objective's range on it (``m``; 1 where it has none); ``ValueError`` if empty."""
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        raise ValueError("an empty front has no points to choose from")
    spread = np.ptp(values, axis=0)
    return values, np.where(spread > 0, spread, 1.0)


def epsilon_better(points: ArrayLike, epsilon: float | Sequence[float]) -> Mask:
    """Whether one of ``n x m`` maximised points is better than another by more than ``epsilon`` anywhere: ``n x n``.

    ``epsilon`` is one number for all objectives, or one for each.
    """
    values = np.atleast_2d(np.asarray(points, dtype=float))
    ahead = values[:, None, :] - values[None, :, :] > np.asarray(epsilon, dtype=float)
    return np.asarray(ahead.any(axis=2), dtype=bool)


def distinct(better: ArrayLike, order: Sequence[int]) -> Mask:
    """A subset of ``n`` points, each better than every other one of it in something: ``n``.

    ``better[i, j]`` says that i is better than j in some objective by more than a tolerance or noise. Points are taken
    in ``order``; one is left out when one that is kept epsilon-dominates it, that is, when it is better than that one
    in nothing (Laumanns et al. 2002). So every point left out has a stand-in that is kept.
    """
    ahead = np.asarray(better, dtype=bool)
    kept: list[int] = []
    for index in order:
        if all(ahead[index, other] for other in kept):
            kept.append(index)
    return np.isin(np.arange(len(ahead)), kept)
