"""Log noisy expected hypervolume improvement, in closed form with its gradient.

The value at x is log E[hypervolume that f(x) adds to the front of f(z)], z being the told and pending points and
the expectation over the surrogate's posterior: what BoTorch calls qLogNoisyExpectedHypervolumeImprovement for one
candidate with ``X_pending`` (Daulton, Balandat, Bakshy, "Parallel Bayesian Optimization of Multiple Noisy
Objectives with Expected Hypervolume Improvement", 2021; the logarithm after Ament et al., "Unexpected
Improvements to Expected Improvement for Bayesian Optimization", 2023). With one objective it is log noisy
expected improvement.

Only f(z) is sampled, S times. Given a sample, f(x) is Gaussian and independent across objectives, and over a
box decomposition of the region above that sample's front the expectation is a sum of products of one-dimensional
expectations. So there is no Monte Carlo error in f(x), the function is smooth, and its gradient is written out.

    S    samples of the front          C    boxes of all samples together
    b    points asked for at once      m    objectives             N    told and pending points
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import erfcx, log_ndtr

from mergefront.optimizer.samplers.hypercells import improvement_cells
from mergefront.optimizer.samplers.surrogate import JITTER, GaussianProcess, Surrogate, kernel

Array = NDArray[np.float64]

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF_PI = math.sqrt(math.pi / 2)
MINIMUM_VARIANCE = 1e-10
"""Of f(x) given f(z), in standardised units."""
CHUNK = 2_000_000
"""Numbers in the largest temporary array; more points than fit are evaluated in turns."""


@dataclass(frozen=True)
class _Conditional:
    """One objective given samples at z: mean = offset + k(x, z) @ weights, variance = scale^2 (1 - k Q k)."""

    lengthscales: Array
    weights: Array  # N x S, in the objective's unit
    quadratic: Array  # Q, N x N
    offset: float
    scale: float


class HypervolumeImprovement:
    """The acquisition function of one proposal; larger is better.

    Args:
        surrogate: processes over the told points, in the common unit of the objectives.
        pending: points whose values are on their way (``p x d``).
        reference: reference point (``m``) in the same unit.
        fixed_front: values (``k x m``) that belong to the front although the surrogate does not know their points.
        normals: standard normal numbers ``S x (n + p) x m`` that choose the samples of f(z).
    """

    def __init__(
        self, surrogate: Surrogate, pending: Array, reference: Array, fixed_front: Array, normals: Array
    ) -> None:
        self._z = np.concatenate([surrogate.x, pending]) if len(pending) else surrogate.x
        self._samples = len(normals)
        conditionals, values = [], []
        for j, process in enumerate(surrogate.processes):
            conditional, sampled = _condition(process, self._z, normals[:, :, j].T)
            conditionals.append(conditional)
            values.append(sampled)
        self._conditionals = tuple(conditionals)
        fronts = np.stack(values, axis=2)  # S x N x m
        cells = [improvement_cells(np.concatenate([front, fixed_front]), reference) for front in fronts]
        self._lower = np.concatenate([lower for lower, _ in cells])
        self._upper = np.concatenate([upper for _, upper in cells])
        self._closed = np.isfinite(self._upper)
        counts = [len(lower) for lower, _ in cells]
        self._cell_sample = np.repeat(np.arange(self._samples), counts)
        self._first_cell = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def values(self, points: Array) -> Array:
        """Log improvement at ``points`` (``b x d``): ``b``, always finite."""
        step = max(1, CHUNK // self._lower.size)
        parts = [self._evaluate(points[i : i + step])[0] for i in range(0, len(points), step)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        """Log improvement at one point (``d``) and its gradient (``d``)."""
        values, backward = self._evaluate(point[None, :])
        log_weight, mean_slope, deviation_slope, deviations, kernels, products = backward
        weight = np.exp(log_weight)[0]  # C: the share of every box in the improvement
        mean_gradient = np.add.reduceat(weight[:, None] * mean_slope[0], self._first_cell, axis=0)  # S x m
        deviation_gradient = (weight[:, None] * deviation_slope[0]).sum(axis=0)  # m
        gradient = np.zeros_like(point)
        for j, conditional in enumerate(self._conditionals):
            by_kernel = conditional.weights @ mean_gradient[:, j]
            by_kernel -= deviation_gradient[j] * conditional.scale**2 / deviations[0, j] * products[j][0]
            pull = by_kernel * kernels[j][0]
            gradient += (pull @ self._z - pull.sum() * point) / conditional.lengthscales**2
        return float(values[0]), gradient

    def _evaluate(self, points: Array) -> tuple[Array, tuple[Array, Array, Array, Array, list[Array], list[Array]]]:
        means, deviations, kernels, products = [], [], [], []
        for conditional in self._conditionals:
            cross = kernel(points, self._z, conditional.lengthscales)
            product = cross @ conditional.quadratic
            variance = 1.0 - (product * cross).sum(axis=1)
            # Where the floor acts the deviation no longer depends on x.
            product[variance < MINIMUM_VARIANCE] = 0.0
            deviations.append(conditional.scale * np.sqrt(np.maximum(variance, MINIMUM_VARIANCE)))
            means.append(conditional.offset + cross @ conditional.weights)
            kernels.append(cross)
            products.append(product)
        mean = np.stack(means, axis=2)[:, self._cell_sample, :]  # b x C x m
        deviation = np.stack(deviations, axis=1)  # b x m
        scale = deviation[:, None, :]
        below = (mean - self._lower) / scale
        above = np.where(self._closed, (mean - self._upper) / scale, -np.inf)
        log_width = np.log(scale) + _log_interval_gain(below, above)
        log_area = log_width.sum(axis=2)  # b x C
        peak = log_area.max(axis=1, keepdims=True)
        total = peak + np.log(np.exp(log_area - peak).sum(axis=1, keepdims=True))
        # d E[(min(y, upper) - lower)+] / d mean = Phi(below) - Phi(above); the same with phi for the deviation.
        mean_slope = np.exp(log_ndtr(below) - log_width) - np.exp(log_ndtr(above) - log_width)
        deviation_slope = np.exp(_log_density(below) - log_width) - np.exp(_log_density(above) - log_width)
        backward = (log_area - total, mean_slope, deviation_slope, deviation, kernels, products)
        return total[:, 0] - math.log(self._samples), backward


def _condition(process: GaussianProcess, z: Array, normals: Array) -> tuple[_Conditional, Array]:
    """Samples f(z) (``S x N``) with ``normals`` (``N x S``), and the process given these samples."""
    n, total = len(process.x), len(z)
    cross = kernel(z, process.x, process.lengthscales)  # N x n
    half = solve_triangular(process.cholesky, cross.T, lower=True)  # n x N
    covariance = kernel(z, z, process.lengthscales) - half.T @ half
    covariance = _stable_cholesky(covariance)
    # Cov(f(z), f(x) | data) = (I - k(z, X) (K + noise)^-1 R) k(z, x), R selecting the told points.
    projection = np.eye(total)
    projection[:, :n] -= solve_triangular(process.cholesky, half, lower=True, trans="T").T
    whitened = solve_triangular(covariance, projection, lower=True)
    inverse_half = solve_triangular(process.cholesky, np.eye(n), lower=True)
    quadratic = whitened.T @ whitened
    quadratic[:n, :n] += inverse_half.T @ inverse_half
    weights = whitened.T @ normals
    weights[:n] += process.weights[:, None]
    sampled = process.constant + cross @ process.weights + (covariance @ normals).T
    conditional = _Conditional(
        process.lengthscales,
        process.scale * weights,
        quadratic,
        process.mean + process.scale * process.constant,
        process.scale,
    )
    return conditional, process.mean + process.scale * sampled


def _stable_cholesky(covariance: Array) -> Array:
    """Lower factor after adding the smallest jitter that works; posterior covariances are nearly singular."""
    jitter = JITTER
    while True:
        try:
            return np.asarray(np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))))
        except np.linalg.LinAlgError:
            if jitter > 1e-2:
                raise
            jitter *= 10.0


def _log_density(z: Array) -> Array:
    return -0.5 * z**2 - _LOG_SQRT_2PI


def _log_gain(z: Array) -> Array:
    """log E[(z + e)+] for a standard normal e, accurate in the far tail where the gain itself underflows."""
    clipped = np.maximum(z, -1.0)
    centre = np.log(np.exp(_log_density(clipped)) + clipped * np.exp(log_ndtr(clipped)))
    tail = np.minimum(z, -1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bracket = 1.0 + tail * _SQRT_HALF_PI * erfcx(-tail / math.sqrt(2.0))
        # Beyond 1e4 standard deviations the bracket is 1 / z^2 to every digit that is left of it.
        log_bracket = np.where(tail > -1e4, np.log(np.maximum(bracket, 1e-300)), -2.0 * np.log(-tail))
        far = _log_density(tail) + log_bracket
    return np.asarray(np.where(z > -1.0, centre, far))


def _log_interval_gain(below: Array, above: Array) -> Array:
    """log(E[(below + e)+] - E[(above + e)+]) for below > above, ``above`` possibly -inf."""
    log_below = _log_gain(below)
    with np.errstate(invalid="ignore"):
        difference = np.where(np.isneginf(above), -np.inf, _log_gain(above) - log_below)
    # A box so thin that rounding eats it still gets a finite logarithm.
    return np.asarray(log_below + np.log(-np.expm1(np.minimum(difference, -1e-14))))
