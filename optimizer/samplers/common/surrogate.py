"""Gaussian processes, one per objective, on the unit cube.

Notation (shapes):

    x        n x d    told points
    y        n        their values, standardised inside a process to mean 0 and standard deviation 1
    noise    n        variance of each observation in the same unit; known from the items' standard errors, or one
                      variance for all observations of which nothing is known, estimated with the kernel
    K        n x n    k(x, x') = (1 + sqrt 5 r + 5/3 r^2) exp(-sqrt 5 r), r^2 = sum_i ((x_i - x'_i) / l_i)^2:
                      Matern 5/2 with one lengthscale per dimension

The model is that of BoTorch 0.18's ``SingleTaskGP``: constant mean, no output scale, lengthscales with a log-normal
prior whose median grows with sqrt(d) (Hvarfner, Hellsten, Nardi, "Vanilla Bayesian Optimization Performs Great
in High Dimensions", 2024), maximum a posteriori. Two things differ because they measured better on merges, where a
dozen evaluations must do: the kernel (Matern, not squared exponential) and the prior (median sqrt(d), one
order of magnitude wide), which BoTorch puts at 4 sqrt(d) and makes nearly flat. The tests hold the rest against
BoTorch. It is written out here, with its gradient, because a search asks for hundreds of small fits: one takes
milliseconds where a general automatic differentiation library takes a second or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

LENGTHSCALE_BOUNDS = (0.025, 1e3)
LENGTHSCALE_LOG_SD = 1.0
NOISE_LOG_MEAN, NOISE_LOG_SD = -4.0, 1.0
NOISE_BOUNDS = (1e-4, 10.0)
KNOWN_NOISE_FLOOR = 1e-6
"""In standardised units; an observation is never taken for exact, which would make K singular."""
KNOWN_NOISE_SHARE = 0.25
"""A known standard error counts for at least this share of the objective's median one: no error at all from a
handful of items (all wrong, say) is a small sample, not certainty."""
JITTER = 1e-9


def kernel(a: Array, b: Array, lengthscales: Array) -> Array:
    """The correlation of every row of ``a`` (``p x d``) with every row of ``b`` (``q x d``): ``p x q``."""
    return kernel_and_slope(a, b, lengthscales)[0]


def kernel_and_slope(a: Array, b: Array, lengthscales: Array) -> tuple[Array, Array]:
    """The kernel and s = -2 dk / d(r^2), each ``p x q``.

    dk / da_i = s (b_i - a_i) / l_i^2, and dk / d log(l_i) = s (a_i - b_i)^2 / l_i^2.
    """
    root = np.sqrt(5.0 * _squared_distances(a, b, lengthscales))
    decay = np.exp(-root)
    slope = 5.0 / 3.0 * (1.0 + root) * decay
    return (1.0 + root + root**2 / 3.0) * decay, slope


def _squared_exponential(a: Array, b: Array, lengthscales: Array) -> tuple[Array, Array]:
    """As ``kernel_and_slope``, for k = exp(-r^2 / 2): its own slope."""
    correlation = np.exp(-0.5 * _squared_distances(a, b, lengthscales))
    return correlation, correlation


def _squared_distances(a: Array, b: Array, lengthscales: Array) -> Array:
    a, b = a / lengthscales, b / lengthscales
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2.0 * a @ b.T
    return np.asarray(np.maximum(squared, 0.0))


@dataclass(frozen=True)
class Covariance:
    """A kernel with the log-normal prior of its lengthscales: median exp(``log_median``) sqrt(d), ``log_sd`` wide."""

    with_slope: Callable[[Array, Array, Array], tuple[Array, Array]]
    log_median: float
    log_sd: float

    def kernel(self, a: Array, b: Array, lengthscales: Array) -> Array:
        return self.with_slope(a, b, lengthscales)[0]

    def log_mean(self, dimension: int) -> float:
        """Of the prior of each lengthscale."""
        # The distance between random points grows with sqrt(d), and the lengthscales with it.
        return self.log_median + 0.5 * math.log(dimension)


MATERN = Covariance(kernel_and_slope, 0.0, LENGTHSCALE_LOG_SD)
"""For scores of merges over the whole space, which have plateaus and steps."""
SMOOTH = Covariance(_squared_exponential, math.sqrt(2.0), math.sqrt(3.0))
"""For a loss near its optimum, which is close to a quadratic; BoTorch 0.18's own kernel and prior."""


@dataclass(frozen=True)
class GaussianProcess:
    """One fitted process; ``mean`` and ``scale`` undo the standardisation, ``constant`` is the prior mean inside it."""

    x: Array
    standardised: Array
    noise: Array
    lengthscales: Array
    constant: float
    mean: float
    scale: float
    covariance: Covariance = MATERN
    roughness: float = 0.0
    """Variance, in standardised units, of what the kernel does not explain but is taken for a part of the value."""

    @cached_property
    def cholesky(self) -> Array:
        """Lower factor of K + noise (``n x n``)."""
        covariance = self.covariance.kernel(self.x, self.x, self.lengthscales) + np.diag(self.noise)
        return np.asarray(np.linalg.cholesky(covariance))

    @cached_property
    def weights(self) -> Array:
        """(K + noise)^-1 (y - constant), ``n``."""
        return np.asarray(cho_solve((self.cholesky, True), self.standardised - self.constant))

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Mean and variance of the latent value at ``points`` (``q x d``), each ``q``, in the objective's unit."""
        cross = self.covariance.kernel(points, self.x, self.lengthscales)
        mean = self.constant + cross @ self.weights
        half = solve_triangular(self.cholesky, cross.T, lower=True)
        variance = np.maximum(1.0 - (half**2).sum(0), 1e-12)
        return self.mean + self.scale * mean, self.scale**2 * variance

    def with_pending(self, pending: Array) -> GaussianProcess:
        """The process as if ``pending`` (``p x d``) had been told at their expected values: only variances shrink."""
        if not len(pending):
            return self
        expected = self.constant + self.covariance.kernel(pending, self.x, self.lengthscales) @ self.weights
        return GaussianProcess(
            np.concatenate([self.x, pending]),
            np.concatenate([self.standardised, expected]),
            np.concatenate([self.noise, np.full(len(pending), float(np.median(self.noise)))]),
            self.lengthscales,
            self.constant,
            self.mean,
            self.scale,
            self.covariance,
            self.roughness,
        )


@dataclass(frozen=True)
class Surrogate:
    """Independent processes over the same told points, one per objective."""

    processes: tuple[GaussianProcess, ...]

    @property
    def x(self) -> Array:
        """The told points, ``n x d``."""
        return self.processes[0].x

    def posterior(self, points: Array) -> tuple[Array, Array]:
        """Means and variances at ``points`` (``q x d``), each ``q x m``."""
        pairs = [process.posterior(points) for process in self.processes]
        return np.stack([mean for mean, _ in pairs], axis=1), np.stack([variance for _, variance in pairs], axis=1)

    def with_pending(self, pending: Array) -> Surrogate:
        """The surrogate whose variances already count the pending points (``p x d``)."""
        return Surrogate(tuple(process.with_pending(pending) for process in self.processes))


def fit_surrogate(
    x: Array, y: Array, noise_variance: Array, learn_from: NDArray[np.int_] | slice = slice(None)
) -> Surrogate:
    """One process per column of ``y`` (``n x m``); ``noise_variance`` (``n x m``) is NaN where unknown.

    Lengthscales and noise are those of the points ``learn_from`` (all by default); every point is conditioned on.
    """
    columns: Sequence[int] = range(y.shape[1])
    return Surrogate(
        tuple(fit_gaussian_process(x, y[:, j], noise_variance[:, j], learn_from=learn_from) for j in columns)
    )


def fit_gaussian_process(
    x: Array,
    y: Array,
    noise_variance: Array,
    covariance: Covariance = MATERN,
    learn_from: NDArray[np.int_] | slice = slice(None),
) -> GaussianProcess:
    """Maximum a posteriori fit to ``n`` values; ``noise_variance`` (``n``, in y's unit squared) is NaN where unknown.

    Raises ``numpy.linalg.LinAlgError`` when no hyper-parameters give a positive definite covariance.
    """
    mean, scale = _location_and_scale(y)
    standardised = (y - mean) / scale
    known = _known_noise(noise_variance / scale**2)
    if np.ptp(standardised) == 0.0:
        # Nothing to learn: the prior's typical lengthscales and the smallest noise.
        lengthscales = np.full(x.shape[1], math.exp(covariance.log_mean(x.shape[1])))
        noise = np.where(np.isnan(known), NOISE_BOUNDS[0], known)
        return GaussianProcess(x, standardised, noise, lengthscales, 0.0, mean, scale, covariance)
    log_lengthscales, log_noise = _maximum_a_posteriori(
        x[learn_from], standardised[learn_from], known[learn_from], covariance
    )
    lengthscales = np.exp(log_lengthscales)
    noise = np.where(np.isnan(known), math.exp(log_noise), known)
    factor = cho_factor(covariance.kernel(x, x, lengthscales) + np.diag(noise), lower=True)
    constant = _best_constant(factor, standardised)
    roughness = math.exp(log_noise) if np.isnan(known).all() and not _repeats_differ(x, standardised) else 0.0
    return GaussianProcess(x, standardised, noise, lengthscales, constant, mean, scale, covariance, roughness)


def log_posterior(
    log_lengthscales: Array,
    log_noise: float,
    x: Array,
    standardised: Array,
    known_noise: Array,
    covariance: Covariance = MATERN,
) -> tuple[float, Array, float]:
    """Log marginal likelihood plus log priors, with its gradient in the log lengthscales (``d``) and the log noise.

    The prior mean is the constant of highest likelihood. ``known_noise`` (``n``) is NaN where the common
    noise applies; when it applies nowhere, the noise has no part in the value.
    """
    n, d = x.shape
    lengthscales, unknown = np.exp(log_lengthscales), np.isnan(known_noise)
    noise = np.where(unknown, math.exp(log_noise), known_noise)
    correlation, slope = covariance.with_slope(x, x, lengthscales)
    factor = cho_factor(correlation + np.diag(noise), lower=True)
    residual = standardised - _best_constant(factor, standardised)
    inverse = cho_solve(factor, np.eye(n))
    weights = inverse @ residual
    value = -0.5 * residual @ weights - np.log(np.diag(factor[0])).sum() - 0.5 * n * math.log(2 * math.pi)
    # d value / d theta = 1/2 trace((weights weights^T - inverse) dK/dtheta)
    outer = np.outer(weights, weights) - inverse
    weighted = outer * slope
    rows = weighted.sum(1)
    # sum_ij W_ij (x_ik - x_jk)^2 = 2 (sum_i rows_i x_ik^2 - x_k^T W x_k), for every dimension k at once
    spread = 2.0 * (rows @ x**2 - ((weighted @ x) * x).sum(0))
    gradient = 0.5 * spread / lengthscales**2
    z = (log_lengthscales - covariance.log_mean(d)) / covariance.log_sd
    value += float((-log_lengthscales - 0.5 * z**2).sum()) - d * math.log(covariance.log_sd * math.sqrt(2 * math.pi))
    gradient = gradient - 1.0 - z / covariance.log_sd
    noise_gradient = 0.0
    if unknown.any():
        z_noise = (log_noise - NOISE_LOG_MEAN) / NOISE_LOG_SD
        value += -log_noise - 0.5 * z_noise**2 - math.log(NOISE_LOG_SD * math.sqrt(2 * math.pi))
        noise_gradient = 0.5 * float(np.diag(outer)[unknown].sum()) * math.exp(log_noise)
        noise_gradient += -1.0 - z_noise / NOISE_LOG_SD
    return float(value), gradient, noise_gradient


def _repeats_differ(x: Array, values: Array) -> bool:
    """Whether the same point was told twice with other values: then they are noisy, whatever nobody said of it."""
    points, index = np.unique(x, axis=0, return_inverse=True)
    if len(points) == len(x):
        return False
    index = index.reshape(-1)
    return any(np.ptp(values[index == i]) > 1e-9 for i in range(len(points)))


def _location_and_scale(y: Array) -> tuple[float, float]:
    mean = float(y.mean())
    scale = float(y.std(ddof=1)) if len(y) > 1 else 0.0
    # A spread below rounding error is no spread.
    return (mean, scale) if scale > 1e-12 * max(abs(mean), 1e-300) and scale > 1e-150 else (mean, 1.0)


def _known_noise(variance: Array) -> Array:
    """Known noise variances in standardised units, floored; NaN stays NaN."""
    known = variance[~np.isnan(variance)]
    if not len(known):
        return variance
    floor = max(KNOWN_NOISE_FLOOR, KNOWN_NOISE_SHARE**2 * float(np.median(known)))
    return np.where(np.isnan(variance), np.nan, np.maximum(variance, floor))


def _best_constant(factor: tuple[Array, bool], standardised: Array) -> float:
    """The generalised least squares estimate of a constant mean."""
    ones = cho_solve(factor, np.ones(len(standardised)))
    return float(ones @ standardised / ones.sum())


def _maximum_a_posteriori(x: Array, standardised: Array, known: Array, covariance: Covariance) -> tuple[Array, float]:
    d = x.shape[1]

    def negative(theta: Array) -> tuple[float, Array]:
        try:
            value, gradient, noise_gradient = log_posterior(
                theta[:d], float(theta[d]), x, standardised, known, covariance
            )
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(d + 1)
        return -value, -np.append(gradient, noise_gradient)

    log_mean = covariance.log_mean(d)
    bounds = [tuple(np.log(LENGTHSCALE_BOUNDS))] * d + [tuple(np.log(NOISE_BOUNDS))]
    best_value, best_theta = math.inf, np.zeros(d + 1)
    # The posterior can have a wiggly mode and a smooth one: start near both.
    for start in (log_mean - covariance.log_sd**2, log_mean + 0.5 * covariance.log_sd):
        theta = np.append(np.full(d, start), NOISE_LOG_MEAN)
        found = minimize(negative, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
        if found.fun < best_value:
            best_value, best_theta = float(found.fun), np.asarray(found.x)
    if best_value >= 1e10:
        raise np.linalg.LinAlgError("no lengthscales give a positive definite covariance")
    return best_theta[:d], float(best_theta[d])
