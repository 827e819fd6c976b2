"""The probability that a point satisfies every constraint and can be evaluated, and acquisitions weighted by it.

One Gaussian process per constraint models its violation, at most 0 where the constraint holds. With mean mu(x) and
deviation sigma(x), log P(feasible) = sum over constraints of log Phi(-mu / sigma), independent of the objectives'
processes; an acquisition that is a logarithm of an improvement is weighted by adding it (Gardner et al., "Bayesian
Optimization with Inequality Constraints", 2014). While nothing feasible is known, the probability alone is maximised.
That a point can be evaluated at all is one more constraint, unknown beforehand (Gelbart, Snoek, Adams, "Bayesian
Optimization with Unknown Constraints", 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve
from scipy.special import log_ndtr

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess
from mergefront.optimizer.samplers.mmmo.optimize_acqf import Acquisition
from mergefront.optimizer.scores.evaluation import LARGEST

FAILED = 4.0
"""How far a failure lies beyond 0, where a success lies 1 before it: a step over the edge costs an evaluation. With 4 a
search along an edge failed less and found more than with 1 or 2 (docs/benchmarks/search-pieces.md)."""


@dataclass(frozen=True)
class Violations:
    """The observations of one constraint: features (``n x f``), violations (``n``) and their noise variance (``n``).

    Trials that report no such number are left out. The variance is NaN where unknown.
    """

    x: Array
    values: Array
    noise_variance: Array


def evaluability(x: Array, failed: int) -> Violations:
    """What could be evaluated at all, as a constraint: violated by the last ``failed`` of the points (``n x f``).

    Failures that have nothing to do with the point (a server that was away) become the process's noise.
    """
    values = np.full(len(x), -1.0)
    values[len(x) - failed :] = FAILED
    return Violations(x, values, np.full(len(x), np.nan))


def fit_violations(observed: Violations) -> GaussianProcess:
    """The process of one constraint's violation, in units in which 0 stays the boundary.

    A collapsed merge can violate a constraint by any amount; left as it is, it would make up most of the variance
    and blur the boundary. So violations v are mapped to sign(v) log(1 + |v| / s), s their median size.
    """
    # Optuna accepts infinite violations.
    values = np.clip(observed.values, -LARGEST, LARGEST)
    size = np.abs(values)
    scale = float(np.median(size)) or float(size.max(initial=0.0)) or 1.0
    squeezed = np.sign(values) * np.log1p(size / scale)
    noise_variance = observed.noise_variance / (scale + size) ** 2
    return fit_gaussian_process(observed.x, squeezed, noise_variance)


@dataclass(frozen=True)
class Feasibility:
    """What is known of the constraints: one process for each, and which observed points (``n``) satisfy them all."""

    processes: tuple[GaussianProcess, ...]
    feasible: Mask

    def log_probability(self, points: Array) -> Array:
        """Log probability that ``points`` (``b x d``) satisfy every constraint: ``b``."""
        return log_probability(self.processes, points)

    def in_front(self, pending: Array) -> Mask:
        """Which of the observed and pending points (``n + p``) count in the front; pending ones when it is likely."""
        likely = self.log_probability(pending) >= np.log(0.5)
        return np.concatenate([self.feasible, likely])


class FeasibilityWeighted:
    """An acquisition plus the log probability of feasibility; larger is better.

    Args:
        processes: one per constraint, over points of the same dimension.
        acquisition: the logarithm of an improvement; None where nothing feasible is known yet.
    """

    def __init__(self, processes: Sequence[GaussianProcess], acquisition: Acquisition | None) -> None:
        self._processes = tuple(processes)
        self._acquisition = acquisition

    def values(self, points: Array) -> Array:
        """At ``points`` (``b x d``): ``b``, always finite."""
        total = log_probability(self._processes, points)
        return total if self._acquisition is None else total + self._acquisition.values(points)

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        """At one point (``d``), with its gradient (``d``)."""
        value, gradient = 0.0, np.zeros_like(point)
        if self._acquisition is not None:
            value, gradient = self._acquisition.value_and_gradient(point)
        for process in self._processes:
            own_value, own_gradient = _log_probability_and_gradient(process, point)
            value, gradient = value + own_value, gradient + own_gradient
        return value, gradient


def log_probability(processes: Sequence[GaussianProcess], points: Array) -> Array:
    """Log probability that ``points`` (``b x d``) satisfy every constraint: ``b``."""
    total = np.zeros(len(points))
    for process in processes:
        mean, variance = process.posterior(points)
        total += log_ndtr(-mean / np.sqrt(variance))
    return total


def _log_probability_and_gradient(process: GaussianProcess, point: Array) -> tuple[float, Array]:
    covariance = process.covariance
    cross, slope = (rows[0] for rows in covariance.with_slope(point[None, :], process.x))
    solved = cho_solve((process.cholesky, True), cross)
    variance = float(covariance.variance(point[None, :])[0] - cross @ solved)
    mean = process.mean + process.scale * (process.constant + float(cross @ process.weights))
    floored = max(variance, 1e-12)
    deviation = process.scale * np.sqrt(floored)
    z = -mean / deviation
    mean_gradient = process.scale * covariance.gradient(point, process.x, slope, process.weights)
    # Where the floor acts the deviation no longer depends on the point.
    variance_gradient = np.zeros_like(point)
    if variance >= floored:
        variance_gradient = covariance.variance_gradient(point)
        variance_gradient -= 2.0 * covariance.gradient(point, process.x, slope, solved)
    deviation_gradient = process.scale * variance_gradient / (2.0 * np.sqrt(floored))
    z_gradient = -(mean_gradient + z * deviation_gradient) / deviation
    log_cdf = float(log_ndtr(z))
    # phi(z) / Phi(z), in logarithms: both underflow far below 0.
    ratio = np.exp(-0.5 * z**2 - 0.5 * np.log(2.0 * np.pi) - log_cdf)
    return log_cdf, ratio * z_gradient
