"""Maximum a posteriori fits of Gaussian processes, one per objective.

Notation (shapes):

    x        n x d    observed points
    y        n        their values, standardised inside a process to mean 0 and standard deviation 1
    noise    n        variance of each observation in the same unit; known from the items' standard errors, or one
                      variance for all observations of which nothing is known, estimated with the kernel
    K        n x n    k(x, x') = (1 + sqrt 5 r + 5/3 r^2) exp(-sqrt 5 r), r^2 = sum_i ((x_i - x'_i) / l_i)^2:
                      Matern 5/2 with one lengthscale per dimension; with a kernel that has a trend, the covariance of
                      a quadratic is added, whose variance is learnt too (``kernel.quadratic_trend``)

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
from collections.abc import Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, Covariance, Kernel, quadratic_trend
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess, Surrogate
from mergefront.optimizer.samplers.gaussian_process.prior import NOISE
from mergefront.optimizer.samplers.options import Unexplained

LENGTHSCALE_BOUNDS = (0.025, 1e3)
NOISE_BOUNDS = (1e-4, 10.0)
"""The lower bounds are those of BoTorch 0.18's ``SingleTaskGP``; the upper ones only keep numbers finite."""
TREND_BOUNDS = (1e-4, 10.0)
"""Of a trend's mean variance: from nothing that shows to what is as good as free. Chosen by hand."""
KNOWN_NOISE_FLOOR = 1e-6
"""In standardised units; an observation is never taken for exact, which would make K singular."""
KNOWN_NOISE_SHARE = 0.25
"""A known standard error counts for at least this share of the objective's median one: no error at all from a
handful of items (all wrong, say) is a small sample, not certainty."""


def fit_surrogate(
    x: Array,
    y: Array,
    noise_variance: Array,
    learn_from: Integers | slice = slice(None),
    unexplained: Unexplained = "roughness",
    kernel: Kernel = MATERN,
) -> Surrogate:
    """One process per column of ``y`` (``n x m``); ``noise_variance`` (``n x m``) is NaN where unknown.

    Lengthscales and noise are those of the points ``learn_from`` (all by default); every point is conditioned on.
    """
    columns: Sequence[int] = range(y.shape[1])
    return Surrogate(
        tuple(fit_gaussian_process(x, y[:, j], noise_variance[:, j], kernel, learn_from, unexplained) for j in columns)
    )


def fit_gaussian_process(
    x: Array,
    y: Array,
    noise_variance: Array,
    kernel: Kernel = MATERN,
    learn_from: Integers | slice = slice(None),
    unexplained: Unexplained = "roughness",
) -> GaussianProcess:
    """Maximum a posteriori fit to ``n`` values; ``noise_variance`` (``n``, in y's unit squared) is NaN where unknown.

    Where no noise is known, what the kernel does not explain is noise, or, as "roughness", a part of the value that a
    new point has too (a nugget); values that differ at one point are noisy in either reading.

    Raises ``numpy.linalg.LinAlgError`` when no hyper-parameters give a positive definite covariance.
    """
    mean, scale = _location_and_scale(y)
    standardised = (y - mean) / scale
    known = _known_noise(noise_variance / scale**2)
    if np.ptp(standardised) == 0.0:
        # Nothing to learn: the prior's typical lengthscales and the smallest noise.
        lengthscales = np.full(x.shape[1], math.exp(kernel.lengthscales.in_dimension(x.shape[1]).log_median))
        noise = np.where(np.isnan(known), NOISE_BOUNDS[0], known)
        return GaussianProcess(x, standardised, noise, Covariance(kernel, lengthscales), 0.0, mean, scale)
    covariance, log_noise = _maximum_a_posteriori(x[learn_from], standardised[learn_from], known[learn_from], kernel)
    noise = np.where(np.isnan(known), math.exp(log_noise), known)
    factor = cho_factor(covariance(x, x) + np.diag(noise), lower=True)
    constant = _best_constant(factor, standardised)
    is_rough = unexplained == "roughness" and np.isnan(known).all() and not _repeats_differ(x, standardised)
    nugget = math.exp(log_noise) if is_rough else 0.0
    return GaussianProcess(x, standardised, noise, covariance, constant, mean, scale, nugget)


def condition(process: GaussianProcess, x: Array, y: Array) -> GaussianProcess:
    """The process's kernel and median noise on other data (``n x d``, ``n``): no new fit."""
    mean, scale = _location_and_scale(y)
    standardised = (y - mean) / scale
    noise = np.full(len(y), float(np.median(process.noise)))
    factor = cho_factor(process.covariance(x, x) + np.diag(noise), lower=True)
    constant = _best_constant(factor, standardised)
    return GaussianProcess(x, standardised, noise, process.covariance, constant, mean, scale)


def log_posterior(
    log_lengthscales: Array,
    log_noise: float,
    x: Array,
    standardised: Array,
    known_noise: Array,
    kernel: Kernel = MATERN,
    log_trend: float = -math.inf,
) -> tuple[float, Array, float, float]:
    """Log marginal likelihood plus log priors, and its gradient in the log lengthscales (``d``), the log noise and the
    log variance of a trend (0 without one).

    The prior mean is the constant of highest likelihood. ``known_noise`` (``n``) is NaN where the common
    noise applies; when it applies nowhere, the noise has no part in the value.
    """
    n, d = x.shape
    lengthscales, unknown = np.exp(log_lengthscales), np.isnan(known_noise)
    noise = np.where(unknown, math.exp(log_noise), known_noise)
    correlation, slope = kernel.with_slope(x, x, lengthscales)
    if kernel.trend is not None:
        quadratic = math.exp(log_trend) * quadratic_trend(x, x)
        correlation = correlation + quadratic
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
    prior = kernel.lengthscales.in_dimension(d)
    z = prior.z(log_lengthscales)
    value += float((-log_lengthscales - 0.5 * z**2).sum()) - d * prior.log_normalisation()
    gradient = gradient - 1.0 - z / prior.log_sd
    noise_gradient = 0.0
    if unknown.any():
        z_noise = NOISE.z(log_noise)
        value += -log_noise - 0.5 * z_noise**2 - NOISE.log_normalisation()
        noise_gradient = 0.5 * float(np.diag(outer)[unknown].sum()) * math.exp(log_noise)
        noise_gradient += -1.0 - z_noise / NOISE.log_sd
    trend_gradient = 0.0
    if kernel.trend is not None:
        z_trend = kernel.trend.z(log_trend)
        value -= 0.5 * z_trend**2 + kernel.trend.log_normalisation()
        trend_gradient = 0.5 * float((outer * quadratic).sum()) - z_trend / kernel.trend.log_sd
    return float(value), gradient, noise_gradient, trend_gradient


def _repeats_differ(x: Array, values: Array) -> bool:
    """Whether the same point was observed twice with other values: then they are noisy, whatever nobody said of it."""
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


def _maximum_a_posteriori(x: Array, standardised: Array, known: Array, kernel: Kernel) -> tuple[Covariance, float]:
    d = x.shape[1]
    with_trend = kernel.trend is not None

    def negative(theta: Array) -> tuple[float, Array]:
        log_trend = float(theta[d + 1]) if with_trend else -math.inf
        try:
            value, *slopes = log_posterior(theta[:d], float(theta[d]), x, standardised, known, kernel, log_trend)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros(len(theta))
        return -value, -np.concatenate([slopes[0], slopes[1 : len(theta) - d + 1]])

    prior = kernel.lengthscales.in_dimension(d)
    bounds = [tuple(np.log(LENGTHSCALE_BOUNDS))] * d + [tuple(np.log(NOISE_BOUNDS))]
    # The posterior can have a wiggly mode and a smooth one: start near both.
    starts = [
        np.append(np.full(d, start), NOISE.log_median)
        for start in (prior.log_median - prior.log_sd**2, prior.log_median + 0.5 * prior.log_sd)
    ]
    if kernel.trend is not None:
        bounds.append(tuple(np.log(TREND_BOUNDS)))
        around = (kernel.trend.log_median - kernel.trend.log_sd, kernel.trend.log_median + kernel.trend.log_sd)
        starts = [np.append(start, log_trend) for start, log_trend in zip(starts, around, strict=True)]
    best_value, best_theta = math.inf, starts[0]
    for start in starts:
        found = minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
        if found.fun < best_value:
            best_value, best_theta = float(found.fun), np.asarray(found.x)
    if best_value >= 1e10:
        raise np.linalg.LinAlgError("no lengthscales give a positive definite covariance")
    trend = math.exp(best_theta[d + 1]) if with_trend else 0.0
    return Covariance(kernel, np.exp(best_theta[:d]), trend), float(best_theta[d])
