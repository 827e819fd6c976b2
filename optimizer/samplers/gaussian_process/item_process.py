"""A process of a score that is a share of right answers, by way of how clearly each item was answered right or wrong.

A score of forty items is flat where none of them turns, and moves in steps where one does. Behind it every item has a
margin, above 0 where it is answered right, that moves smoothly with the merge. So each item's margin is a Gaussian
process, all with one kernel, and the score at x is expected to be

    g(x) = low + gain * mean over items of Phi(mean_i(x) / deviation_i(x)),

where gain and low make the objective of a share (its normalisation). The score is g plus a process of its own. That has
the same kernel, and its size is what g misses of each point when it is left out. What it is worth in a search is in
docs/benchmarks/search-margins.md.

    n    observed points        k    items        d    dimensions
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import ndtr

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.samplers.common.units import compress_tail, compressed_slope
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, Covariance, Kernel
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess

LEAST_VARIANCE = 1e-6
"""Of an item's margin, in units of its kernel's variance, and of its variance over the points that were observed."""
LEAST_MISSED = 1e-3
"""Of a normalised score: what items that predict every point are still taken to miss."""
AFFINE = 1e-6
"""A score farther from a multiple of the share of right answers than this is none."""


@dataclass(frozen=True)
class ItemsExpectation:
    """g, compressed below ``reference`` as the scores are (``units.compress_tail``)."""

    x: Array  # n x d
    cholesky: Array  # n x n, of the kernel with its noise
    covariance: Covariance
    constants: Array  # k
    weights: Array  # n x k
    scales: Array  # k, an item's standard deviation under the kernel of unit variance
    low: float
    gain: float
    reference: float

    def values(self, points: Array) -> Array:
        """At ``points`` (``q x d``): ``q``."""
        return compress_tail(self._expected(self._clearness(points)), np.asarray(self.reference))

    def gradient(self, point: Array) -> Array:
        """At ``point`` (``d``): ``d``."""
        cross, slope = self.covariance.with_slope(point[None, :], self.x)
        half, deviation = self._half_and_deviation(point[None, :], cross)
        clearness = (self.constants + cross[0] @ self.weights) / (deviation[0] * self.scales)
        outer = self.gain * float(compressed_slope(self._expected(clearness[None, :]), np.asarray(self.reference))[0])
        density = outer * np.exp(-0.5 * clearness**2) / (math.sqrt(2 * math.pi) * len(clearness))
        by_kernel = self.weights @ (density / (deviation[0] * self.scales))
        if deviation[0] ** 2 <= LEAST_VARIANCE:
            return self.covariance.gradient(point, self.x, slope[0], by_kernel)
        per_variance = -0.5 * float((density * clearness).sum()) / deviation[0] ** 2
        by_kernel = by_kernel - 2.0 * per_variance * solve_triangular(self.cholesky, half[:, 0], lower=True, trans="T")
        gradient = self.covariance.gradient(point, self.x, slope[0], by_kernel)
        return np.asarray(gradient + per_variance * self.covariance.variance_gradient(point))

    def _expected(self, clearness: Array) -> Array:
        return np.asarray(self.low + self.gain * ndtr(clearness).mean(axis=1))

    def _clearness(self, points: Array) -> Array:
        """How many standard deviations each item's margin is expected above 0, ``q x k``."""
        cross = self.covariance(points, self.x)
        _, deviation = self._half_and_deviation(points, cross)
        return np.asarray((self.constants + cross @ self.weights) / (deviation[:, None] * self.scales))

    def _half_and_deviation(self, points: Array, cross: Array) -> tuple[Array, Array]:
        half = solve_triangular(self.cholesky, cross.T, lower=True)
        variance = np.maximum(self.covariance.variance(points) - (half**2).sum(axis=0), LEAST_VARIANCE)
        return half, np.sqrt(variance)


def fit_by_items(
    x: Array,
    y: Array,
    margins: Array,
    reference: float,
    kernel: Kernel = MATERN,
    learn_from: Integers | slice = slice(None),
) -> GaussianProcess | None:
    """The process of normalised scores ``y`` (``n``) whose items have ``margins`` (``n x k``), compressed below
    ``reference``. None where the scores are no multiple of the share of margins above 0, or all are one.

    Standard errors count for nothing: where all merges answer the same items, they are the same luck for each.

    Raises ``numpy.linalg.LinAlgError`` as ``fit_gaussian_process``.
    """
    share = (margins > 0.0).mean(axis=1)
    if np.ptp(share) == 0.0:
        return None
    gain, low = np.polyfit(share, y, 1)
    if np.abs(low + gain * share - y).max() > AFFINE * (1.0 + np.abs(y).max()):
        return None
    # What counts is how near to 0 a margin is, in the unit of usual ones.
    squashed = np.arcsinh(margins / max(float(np.median(np.abs(margins))), np.finfo(float).tiny))
    of_mean = fit_gaussian_process(x, squashed.mean(axis=1), np.full(len(x), np.nan), kernel, learn_from, "noise")
    noise, covariance = of_mean.noise, of_mean.covariance
    cholesky = np.asarray(np.linalg.cholesky(covariance(x, x) + np.diag(noise)), dtype=float)
    inverse = cho_solve((cholesky, True), np.eye(len(x)))
    rows = inverse.sum(axis=1)
    constants = rows @ squashed / rows.sum()
    weights = inverse @ (squashed - constants)
    scales = np.sqrt(np.maximum(((squashed - constants) * weights).mean(axis=0), LEAST_VARIANCE))
    expected = ItemsExpectation(x, cholesky, covariance, constants, weights, scales, float(low), float(gain), reference)
    # Rasmussen and Williams 2006, equations 5.12: what the other points say of each.
    precision = np.diag(inverse)
    left_out = (squashed - weights / precision[:, None]) * np.sqrt(precision)[:, None] / scales
    compressed, bound = compress_tail(y, np.asarray(reference)), np.asarray(reference)
    missed = compressed - compress_tail(low + gain * ndtr(left_out).mean(axis=1), bound)
    scale = max(float(np.sqrt(np.mean(missed**2 * precision))), LEAST_MISSED)
    rest = (compressed - expected.values(x)) / scale
    return GaussianProcess(x, rest, noise, covariance, 0.0, 0.0, scale, expected=expected)
