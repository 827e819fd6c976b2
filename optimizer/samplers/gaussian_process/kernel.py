"""Kernels with one lengthscale per dimension, k(x, x') as a function of r^2 = sum_i ((x_i - x'_i) / l_i)^2, and the
covariance of a process that adds a quadratic trend to one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.samplers.gaussian_process.prior import LogNormal


def matern_and_slope(a: Array, b: Array, lengthscales: Array) -> tuple[Array, Array]:
    """Matern 5/2 and s = -2 dk / d(r^2), for the rows of ``a`` (``p x d``) and ``b`` (``q x d``), each ``p x q``.

    dk / da_i = s (b_i - a_i) / l_i^2, and dk / d log(l_i) = s (a_i - b_i)^2 / l_i^2.
    """
    root = np.sqrt(5.0 * _squared_distances(a, b, lengthscales))
    decay = np.exp(-root)
    slope = 5.0 / 3.0 * (1.0 + root) * decay
    return (1.0 + root + root**2 / 3.0) * decay, slope


def squared_exponential_and_slope(a: Array, b: Array, lengthscales: Array) -> tuple[Array, Array]:
    """As ``matern_and_slope``, for k = exp(-r^2 / 2): its own slope."""
    correlation = np.exp(-0.5 * _squared_distances(a, b, lengthscales))
    return correlation, correlation


def _squared_distances(a: Array, b: Array, lengthscales: Array) -> Array:
    a, b = a / lengthscales, b / lengthscales
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T
    return np.asarray(np.maximum(squared, 0.0))


@dataclass(frozen=True)
class Kernel:
    """A kernel of unit variance with the prior of its lengthscales, given for one dimension."""

    with_slope: Callable[[Array, Array, Array], tuple[Array, Array]]
    lengthscales: LogNormal
    trend: LogNormal | None = None
    """Of a quadratic trend's mean variance over the cube, by its logarithm's density; None is no trend."""


MATERN = Kernel(matern_and_slope, LogNormal(0.0, 1.0))
"""For scores of merges over the whole space, which have plateaus and steps (docs/benchmarks/search.md)."""
SMOOTH = Kernel(squared_exponential_and_slope, LogNormal(math.sqrt(2.0), math.sqrt(3.0)))
"""For a loss near its optimum, which is close to a quadratic; BoTorch 0.18's own kernel and prior."""
MATERN_WITH_TREND = Kernel(matern_and_slope, MATERN.lengthscales, trend=LogNormal(math.log(0.5), 1.5))
"""For a few weights of LoRAs: a stationary process returns to the mean between points, so that it misses what lies in
the middle of a front (docs/benchmarks/search-trend.md)."""


@dataclass(frozen=True)
class Covariance:
    """That of a process: ``kernel`` with its lengthscales (``d``), and ``trend`` times ``quadratic_trend``."""

    kernel: Kernel
    lengthscales: Array
    trend: float = 0.0

    def __call__(self, a: Array, b: Array) -> Array:
        """Of every row of ``a`` (``p x d``) with every row of ``b`` (``q x d``): ``p x q``."""
        return self.with_slope(a, b)[0]

    def with_slope(self, a: Array, b: Array) -> tuple[Array, Array]:
        """The covariance of rows of ``a`` with rows of ``b``, and the kernel's own slope, for ``gradient``."""
        value, slope = self.kernel.with_slope(a, b, self.lengthscales)
        return value + self.trend * quadratic_trend(a, b) if self.trend else value, slope

    @property
    def _factor(self) -> float:
        return self.trend / mean_trend_variance(len(self.lengthscales))

    def variance(self, points: Array) -> Array:
        """Of the value at each of ``points`` (``n x d``): ``n``."""
        squares = (2.0 * points - 1.0) ** 2
        inner = squares.sum(axis=1)
        return np.asarray(1.0 + self._factor * (inner + 0.5 * (inner**2 + (squares**2).sum(axis=1))))

    def gradient(self, point: Array, others: Array, slope: Array, weights: Array) -> Array:
        """Of sum_j weights_j k(x, others_j) in x (``d``) at ``point`` (``d``), ``slope`` (``q``) being of both."""
        pull = weights * slope
        found = (pull @ others - pull.sum() * point) / self.lengthscales**2
        if self.trend:
            own, centred = 2.0 * point - 1.0, 2.0 * others - 1.0
            inner = weights * (1.0 + centred @ own)
            found = found + 2.0 * self._factor * (inner @ centred + (weights @ centred**2) * own)
        return np.asarray(found)

    def variance_gradient(self, point: Array) -> Array:
        """Of ``variance`` at ``point`` (``d``): ``d``."""
        own = 2.0 * point - 1.0
        return np.asarray(4.0 * self._factor * (own * (1.0 + own @ own) + own**3))


def quadratic_trend(a: Array, b: Array) -> Array:
    """Covariance (``p x q``) of sum_i beta_i u_i + sum_(i <= j) gamma_ij u_i u_j, where u = 2 x - 1 goes from -1 to 1
    over the unit cube, with normal coefficients of one variance, by which the sum's is 1 in the mean over the cube: in
    proportion to u.v + ((u.v)^2 + sum_i u_i^2 v_i^2) / 2."""
    u, v = 2.0 * a - 1.0, 2.0 * b - 1.0
    inner = u @ v.T
    return np.asarray((inner + 0.5 * (inner**2 + u**2 @ (v**2).T)) / mean_trend_variance(a.shape[1]))


def mean_trend_variance(d: int) -> float:
    """Mean over the cube of u.u + ((u.u)^2 + sum_i u_i^4) / 2: u_i^2 is 1/3 in the mean, u_i^4 is 1/5."""
    return d / 3.0 + 0.5 * (d**2 / 9.0 + 4.0 * d / 45.0 + d / 5.0)
