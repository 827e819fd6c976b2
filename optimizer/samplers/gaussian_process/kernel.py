"""Kernels with one lengthscale per dimension: k(x, x') as a function of r^2 = sum_i ((x_i - x'_i) / l_i)^2."""

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

    def __call__(self, a: Array, b: Array, lengthscales: Array) -> Array:
        """k of every row of ``a`` (``p x d``) with every row of ``b`` (``q x d``): ``p x q``."""
        return self.with_slope(a, b, lengthscales)[0]


MATERN = Kernel(matern_and_slope, LogNormal(0.0, 1.0))
"""For scores of merges over the whole space, which have plateaus and steps (docs/benchmarks/search.md)."""
SMOOTH = Kernel(squared_exponential_and_slope, LogNormal(math.sqrt(2.0), math.sqrt(3.0)))
"""For a loss near its optimum, which is close to a quadratic; BoTorch 0.18's own kernel and prior."""
