"""A fitted Gaussian process and what it says of new points; a surrogate is one process per objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.samplers.gaussian_process.kernel import Covariance


class Expectation(Protocol):
    """A function that is known before the process."""

    def values(self, points: Array) -> Array:
        """At ``points`` (``q x d``): ``q``."""

    def gradient(self, point: Array) -> Array:
        """At ``point`` (``d``): ``d``."""


@dataclass(frozen=True)
class GaussianProcess:
    """One fitted process; ``mean`` and ``scale`` undo the standardisation, ``constant`` is the prior mean inside it."""

    x: Array
    standardised: Array
    noise: Array
    covariance: Covariance
    constant: float
    mean: float
    scale: float
    nugget: float = 0.0
    """Variance, in standardised units, of what the kernel does not explain but is taken for a part of the value."""
    expected: Expectation | None = None
    """What is added to the process, in the objective's unit; nothing without."""

    @cached_property
    def cholesky(self) -> Array:
        """Lower factor of K + noise (``n x n``)."""
        return np.asarray(np.linalg.cholesky(self.covariance(self.x, self.x) + np.diag(self.noise)))

    @cached_property
    def weights(self) -> Array:
        """(K + noise)^-1 (y - constant), ``n``."""
        return np.asarray(cho_solve((self.cholesky, True), self.standardised - self.constant))

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance of the latent value at ``points`` (``q x d``), each ``q``, in the objective's unit."""
        cross = self.covariance(points, self.x)
        mean = self.constant + cross @ self.weights
        half = solve_triangular(self.cholesky, cross.T, lower=True)
        variance = np.maximum(self.covariance.variance(points) - (half**2).sum(0), 1e-12)
        return self.mean + self.scale * mean + self.expectation(points), self.scale**2 * variance

    def expectation(self, points: Array) -> Array:
        """What is added to the process at ``points`` (``q x d``): ``q``."""
        return np.zeros(len(points)) if self.expected is None else self.expected.values(points)

    def with_pending(self, pending: Array) -> GaussianProcess:
        """The process as if ``pending`` (``p x d``) had their expected values: only variances shrink."""
        if not len(pending):
            return self
        expected = self.constant + self.covariance(pending, self.x) @ self.weights
        return replace(
            self,
            x=np.concatenate([self.x, pending]),
            standardised=np.concatenate([self.standardised, expected]),
            noise=np.concatenate([self.noise, np.full(len(pending), float(np.median(self.noise)))]),
        )


@dataclass(frozen=True)
class Surrogate:
    """Independent processes over the same observed points, one per objective."""

    processes: tuple[GaussianProcess, ...]

    @property
    def x(self) -> Array:
        """The observed points, ``n x d``."""
        return self.processes[0].x

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Means and variances at ``points`` (``q x d``), each ``q x m``."""
        pairs = [process.posterior(points) for process in self.processes]
        return np.stack([mean for mean, _ in pairs], axis=1), np.stack([variance for _, variance in pairs], axis=1)

    def with_pending(self, pending: Array) -> Surrogate:
        """The surrogate whose variances already count the pending points (``p x d``)."""
        return Surrogate(tuple(process.with_pending(pending) for process in self.processes))
