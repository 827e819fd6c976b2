"""Log expected hypervolume improvement for any surrogate that gives a mean and a variance per objective.

The closed form over boxes is that of ``acquisition``; here the front is known (the told values, denoised), not sampled,
because a composite of processes has no closed form given samples of itself.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.samplers.acquisition import (
    CHUNK,
    MINIMUM_VARIANCE,
    _gaussian_terms,
    _log_difference,
)
from mergefront.optimizer.samplers.hypercells import improvement_cells

Array = NDArray[np.float64]

STEP = 1e-6
"""Of the differences by which the gradient is taken, in the unit cube."""


class Posterior(Protocol):
    """Means and variances (each ``q x m``) at points (``q x d``)."""

    def posterior(self, points: Array) -> tuple[Array, Array]: ...


class GaussianImprovement:
    """The acquisition function of one proposal over ``front`` (``n x m``) and a reference point (``m``)."""

    def __init__(self, surrogate: Posterior, front: Array, reference: Array) -> None:
        self._surrogate = surrogate
        self._lower, self._upper = improvement_cells(front, reference)

    def values(self, points: Array) -> Array:
        """Log improvement at ``points`` (``b x d``): ``b``, always finite."""
        step = max(1, CHUNK // max(self._lower.size, 1))
        parts = [self._log_improvement(points[i : i + step]) for i in range(0, len(points), step)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        """Log improvement at one point (``d``) and its gradient (``d``), by differences in one batch."""
        around = np.concatenate([point[None, :], point[None, :] + STEP * np.eye(len(point))])
        values = self.values(around)
        return float(values[0]), (values[1:] - values[0]) / STEP

    def _log_improvement(self, points: Array) -> Array:
        mean, variance = self._surrogate.posterior(points)
        deviation = np.sqrt(np.maximum(variance, MINIMUM_VARIANCE))
        log_area = np.zeros((len(points), len(self._lower)))
        for j in range(mean.shape[1]):
            edges, index = np.unique(np.concatenate([self._lower[:, j], self._upper[:, j]]), return_inverse=True)
            z = (mean[:, j, None] - edges) / deviation[:, j, None]
            log_gain = _gaussian_terms(z)[0]
            lower, upper = np.split(index, 2)
            log_area += np.log(deviation[:, j])[:, None] + _log_difference(log_gain[:, lower], log_gain[:, upper])
        peak = log_area.max(axis=1)
        return np.asarray(peak + np.log(np.exp(log_area - peak[:, None]).sum(axis=1)))
