"""The Pareto front and the hypervolume, in the normalised unit system (all objectives maximised)."""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Which of ``n x m`` maximised points no other dominates (``n``; of equal points all are kept)."""
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(values, maximise=True, keep_weakly=True), dtype=bool)


def hypervolume(points: ArrayLike, reference: Sequence[float]) -> float:
    """Volume dominated by ``n x m`` maximised points above ``reference`` (``m``); exact (moocore)."""
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        return 0.0
    return float(moocore.hypervolume(values, ref=np.asarray(reference, dtype=float), maximise=True))


def hypervolume_contributions(points: ArrayLike, reference: Sequence[float]) -> NDArray[np.float64]:
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
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        raise ValueError("an empty front has no knee")
    spread = np.ptp(values, axis=0)
    scaled = (values - values.min(axis=0)) / np.where(spread > 0, spread, 1.0)
    return int(np.argmax(scaled.sum(axis=1)))


def preferred(points: ArrayLike, weights: Sequence[float]) -> int:
    """Index of the point of a front (``n x m``, maximised) that a user with these weights picks.

    Augmented Chebyshev distance to the ideal point after scaling each objective to [0, 1] on the
    front (Steuer and Choo 1983): it can reach every point of the front, a weighted sum cannot.
    """
    values = np.atleast_2d(np.asarray(points, dtype=float))
    if values.size == 0:
        raise ValueError("an empty front has no preferred point")
    spread = np.ptp(values, axis=0)
    missing = (values.max(axis=0) - values) / np.where(spread > 0, spread, 1.0)
    scale = np.asarray(weights, dtype=float) / max(float(np.sum(weights)), 1e-12)
    return int(np.argmin((missing * scale).max(axis=1) + 0.01 * (missing * scale).sum(axis=1)))
