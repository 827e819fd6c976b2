"""Log noisy expected hypervolume improvement, in closed form with its gradient.

The value at x is log E[hypervolume that f(x) adds to the front of f(z)], z being the observed and pending points and
the expectation over the surrogate's posterior: what BoTorch calls qLogNoisyExpectedHypervolumeImprovement for one
candidate with ``X_pending`` (Daulton, Balandat, Bakshy, "Parallel Bayesian Optimization of Multiple Noisy
Objectives with Expected Hypervolume Improvement", 2021; the logarithm after Ament et al., "Unexpected
Improvements to Expected Improvement for Bayesian Optimization", 2023). With one objective it is log noisy
expected improvement.

Values whose noise is known are noisy; where nothing is known they are taken as they are, and what the kernel does not
explain is a nugget: a part of f that a new point has too (``GaussianProcess.nugget``).

Only f(z) is sampled, S times. Given a sample, f(x) is Gaussian and independent across objectives, and over a
box decomposition of the region above that sample's front the expectation is a sum of products of one-dimensional
expectations. So there is no Monte Carlo error in f(x), the function is smooth, and its gradient is written out.

    S    samples of the front          C    boxes of all samples together     E    their edges
    b    points asked for at once      m    objectives             N    observed and pending points
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import erfcx

from mergefront.optimizer.arrays import Array, Integers, Mask
from mergefront.optimizer.samplers.common.box_decomposition import nondominated_boxes
from mergefront.optimizer.samplers.gaussian_process.kernel import Covariance
from mergefront.optimizer.samplers.gaussian_process.posterior import Expectation, GaussianProcess, Surrogate

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
_SQRT_HALF_PI = math.sqrt(math.pi / 2)
MINIMUM_VARIANCE = 1e-10
"""Of f(x) given f(z), in standardised units; far below any noise (``NOISE_BOUNDS``)."""
JITTER = 1e-9
"""The first addition to a diagonal that cannot be factorised, in standardised units; ten times as much each retry."""
CHUNK = 2_000_000
"""Numbers in the largest temporary array; more points than fit are evaluated in turns."""


@dataclass(frozen=True)
class _Conditional:
    """One objective given samples at z: mean = offset + k(x, z) @ weights, variance = scale^2 (v + nugget - k Q k),
    where v = k(x, x) and k = k(x, z)."""

    covariance: Covariance
    weights: Array  # N x S, in the objective's unit
    quadratic: Array  # Q, N x N
    offset: float
    scale: float
    nugget: float
    expected: Expectation | None


class HypervolumeImprovement:
    """The acquisition function of one proposal; larger is better.

    Args:
        surrogate: processes over the observed points, in the common unit of the objectives.
        pending: points whose values are on their way (``p x d``).
        reference: reference point (``m``) in the same unit.
        fixed_front: values (``k x m``) that belong to the front although the surrogate does not know their points.
        base_samples: standard normal numbers ``S x (n + p) x m`` that choose the samples of f(z).
        in_front: which of the ``n + p`` points may be on the front, those that satisfy the constraints; None means all.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        pending: Array,
        reference: Array,
        fixed_front: Array,
        base_samples: Array,
        in_front: Mask | None = None,
    ) -> None:
        self._z = np.concatenate([surrogate.x, pending]) if len(pending) else surrogate.x
        conditioned = [
            _condition(process, self._z, base_samples[:, :, j].T) for j, process in enumerate(surrogate.processes)
        ]
        fronts = np.stack([sampled for _, sampled in conditioned], axis=2)  # S x N x m
        if in_front is not None:
            fronts = fronts[:, in_front]
        fixed = np.broadcast_to(fixed_front, (len(fronts), *fixed_front.shape))
        boxes = _Boxes(*nondominated_boxes(np.concatenate([fronts, fixed], axis=1), reference))
        self._use([conditional for conditional, _ in conditioned], boxes)

    def _use(self, conditionals: Sequence[_Conditional], boxes: _Boxes) -> None:
        self._conditionals, self._boxes = tuple(conditionals), boxes
        self._edges = _Edges.of(boxes)
        self.samples = conditionals[0].weights.shape[1]
        """Of the front."""

    def thinned(self, samples: int) -> HypervolumeImprovement:
        """The same over so many of its samples, which stand for all: nearly as good to climb on, and cheaper.

        Half of them are from the second half of all, as the antithetic ones are.
        """
        chosen = np.arange(samples)
        chosen[samples // 2 :] += (self.samples - samples) // 2
        fewer = copy(self)
        fewer._use(
            [replace(one, weights=one.weights[:, chosen]) for one in self._conditionals], self._boxes.of_samples(chosen)
        )
        return fewer

    def values(self, points: Array) -> Array:
        """Log improvement at ``points`` (``b x d``): ``b``, always finite."""
        step = max(1, CHUNK // self._edges.lower.shape[1])
        parts = [self._log_improvement(points[i : i + step]).total for i in range(0, len(points), step)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        """Log improvement at one point (``d``) and its gradient (``d``)."""
        forward, edges = self._log_improvement(point[None, :]), self._edges
        share = np.exp(forward.log_area[0] - forward.log_area[0].max())
        share /= share.sum()  # C: every box's share in the improvement
        # d E[(min(y, upper) - lower)+] / d mean = Phi(below) - Phi(above); the same with phi for the deviation.
        per_mean = _difference(forward.log_cdf[0], forward.log_width[0], edges)
        per_deviation = _difference(forward.log_density[0], forward.log_width[0], edges)
        gradient = np.zeros_like(point)
        for j, (conditional, seen) in enumerate(zip(self._conditionals, forward.seen, strict=True)):
            mean_gradient = np.add.reduceat(share * per_mean[j], edges.first_box)  # S
            # Objective by objective: a product with all at once rounds otherwise, and begun searches would part.
            deviation_gradient = float(share @ per_deviation[j])
            by_kernel = conditional.weights @ mean_gradient
            # Where the floor acts the deviation no longer depends on x.
            per_variance = 0.0
            if not seen.floored[0]:
                per_variance = deviation_gradient * conditional.scale**2 / seen.deviation[0]
            by_kernel -= per_variance * seen.product[0]
            gradient += conditional.covariance.gradient(point, self._z, seen.slope[0], by_kernel)
            gradient += 0.5 * per_variance * conditional.covariance.variance_gradient(point)
            if conditional.expected is not None:
                gradient += mean_gradient.sum() * conditional.expected.gradient(point)
        return float(forward.total[0]), gradient

    def _log_improvement(self, points: Array) -> _Forward:
        edges = self._edges
        seen = tuple(self._seen(points, conditional) for conditional in self._conditionals)
        mean = np.concatenate([one.mean for one in seen], axis=1)  # b x (m S)
        deviation = np.stack([one.deviation for one in seen], axis=1)  # b x m
        z = (mean[:, edges.mean] - edges.value) / deviation[:, edges.objective]
        log_gain, log_cdf, log_density = _gaussian_terms(z)
        log_width = np.log(deviation)[:, :, None] + _log_difference(log_gain[:, edges.lower], log_gain[:, edges.upper])
        log_area = log_width.sum(axis=1)  # b x C
        peak = log_area.max(axis=1, keepdims=True)
        total = peak[:, 0] + np.log(np.exp(log_area - peak).sum(axis=1)) - math.log(self.samples)
        return _Forward(total, log_area, seen, log_cdf, log_density, log_width)

    def _seen(self, points: Array, conditional: _Conditional) -> _Seen:
        cross, slope = conditional.covariance.with_slope(points, self._z)
        product = cross @ conditional.quadratic
        variance = conditional.covariance.variance(points) + conditional.nugget - (product * cross).sum(axis=1)
        deviation = conditional.scale * np.sqrt(np.maximum(variance, MINIMUM_VARIANCE))
        mean = conditional.offset + cross @ conditional.weights
        if conditional.expected is not None:
            mean += conditional.expected.values(points)[:, None]
        return _Seen(slope, product, variance < MINIMUM_VARIANCE, mean, deviation)


@dataclass(frozen=True)
class _Boxes:
    """Of all samples' fronts, those of one sample after those of another."""

    lower: Array  # C x m
    upper: Array  # C x m, infinite where a box is open
    sample: Integers  # C, sorted

    def of_samples(self, chosen: Integers) -> _Boxes:
        """The boxes of the samples ``chosen``, sorted, which are numbered anew."""
        kept = np.isin(self.sample, chosen)
        return _Boxes(self.lower[kept], self.upper[kept], np.searchsorted(chosen, self.sample[kept]))


@dataclass(frozen=True)
class _Edges:
    """Where the boxes begin and end in each objective, an objective after the other; boxes share edges, so each is
    computed once."""

    value: Array  # E, infinite for the open end
    objective: Integers  # E
    mean: Integers  # E: which of the means (m x S, one objective after the other) is that of an edge
    lower: Integers  # m x C: index of a box's lower edge
    upper: Integers  # m x C
    first_box: Integers  # S: index of a sample's first box

    @staticmethod
    def of(boxes: _Boxes) -> _Edges:
        count = len(boxes.sample)
        first_box = np.flatnonzero(np.diff(boxes.sample, prepend=-1))
        values, objectives, means, lowers, uppers, start = [], [], [], [], [], 0
        samples = np.concatenate([boxes.sample, boxes.sample])
        for objective, both in enumerate(np.concatenate([boxes.lower, boxes.upper]).T):
            order = np.lexsort((both, samples))
            new = np.ones(2 * count, dtype=bool)
            new[1:] = (np.diff(samples[order]) > 0) | (both[order][1:] > both[order][:-1])
            index = np.empty(2 * count, dtype=int)
            index[order] = start + np.cumsum(new) - 1
            distinct = order[new]
            values.append(both[distinct])
            objectives.append(np.full(len(distinct), objective))
            means.append(objective * len(first_box) + samples[distinct])
            lowers.append(index[:count])
            uppers.append(index[count:])
            start += len(distinct)
        return _Edges(
            np.concatenate(values), np.concatenate(objectives), np.concatenate(means),
            np.stack(lowers), np.stack(uppers), first_box,
        )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """One objective at ``b`` points."""

    slope: Array  # b x N, the kernel's own
    product: Array  # b x N, k(x, z) @ Q
    floored: Mask  # b, whether the variance is below its floor
    mean: Array  # b x S
    deviation: Array  # b


@dataclass(frozen=True)
class _Forward:
    """What the improvement at ``b`` points, and its gradient, are made of."""

    total: Array  # b
    log_area: Array  # b x C
    seen: tuple[_Seen, ...]  # m
    log_cdf: Array  # b x E
    log_density: Array  # b x E
    log_width: Array  # b x m x C, log E[(min(y, upper) - lower)+]


def _condition(process: GaussianProcess, z: Array, base_samples: Array) -> tuple[_Conditional, Array]:
    """Samples f(z) (``S x N``) with ``base_samples`` (``N x S``), and the process given these samples."""
    condition = _given_values if process.nugget else _given_noisy_values
    sampled, weights, quadratic = condition(process, z, base_samples)
    conditional = _Conditional(
        process.covariance,
        process.scale * weights,
        quadratic,
        process.mean + process.scale * process.constant,
        process.scale,
        process.nugget,
        process.expected,
    )
    return conditional, process.mean + process.scale * sampled + process.expectation(z)


def _given_noisy_values(process: GaussianProcess, z: Array, base_samples: Array) -> tuple[Array, Array, Array]:
    """Standardised samples (``S x N``), weights (``N x S``) and quadratic form (``N x N``) of ``_Conditional``."""
    n, total = len(process.x), len(z)
    cross = process.covariance(z, process.x)  # N x n
    half = solve_triangular(process.cholesky, cross.T, lower=True)  # n x N
    covariance = process.covariance(z, z) - half.T @ half
    covariance = _stable_cholesky(covariance)
    # Cov(f(z), f(x) | data) = (I - k(z, X) (K + noise)^-1 R) k(z, x), R selecting the observed points.
    projection = np.eye(total)
    projection[:, :n] -= solve_triangular(process.cholesky, half, lower=True, trans="T").T
    whitened = solve_triangular(covariance, projection, lower=True)
    inverse_half = solve_triangular(process.cholesky, np.eye(n), lower=True)
    quadratic = whitened.T @ whitened
    quadratic[:n, :n] += inverse_half.T @ inverse_half
    weights = whitened.T @ base_samples
    weights[:n] += process.weights[:, None]
    sampled = process.constant + cross @ process.weights + (covariance @ base_samples).T
    return sampled, weights, quadratic


def _given_values(process: GaussianProcess, z: Array, base_samples: Array) -> tuple[Array, Array, Array]:
    """As ``_given_noisy_values`` where the observed values are the values themselves, the nugget included."""
    n, total = len(process.x), len(z)
    covariance = process.covariance(z, z) + process.nugget * np.eye(total)
    factor = _stable_cholesky(covariance)
    values = np.repeat((process.standardised - process.constant)[:, None], base_samples.shape[1], axis=1)  # n x S
    observed = solve_triangular(factor[:n, :n], values, lower=True)
    whitened = np.concatenate([observed, base_samples[n:]])
    inverse_half = solve_triangular(factor, np.eye(total), lower=True)
    sampled = process.constant + (factor @ whitened).T
    return sampled, inverse_half.T @ whitened, inverse_half.T @ inverse_half


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


def _gaussian_terms(z: Array) -> tuple[Array, Array, Array]:
    """log E[(z + e)+], log Phi(z) and log phi(z) for a standard normal e; ``z`` may be -inf.

    Accurate where the values themselves underflow: all three come from one scaled complementary error function.
    """
    size = np.abs(z)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_density = -0.5 * size**2 - _LOG_SQRT_2PI
        scaled = erfcx(size / math.sqrt(2.0))
        log_tail = np.log(0.5 * scaled) - 0.5 * size**2  # log Phi(-|z|)
        bracket = 1.0 - size * _SQRT_HALF_PI * scaled
        # Beyond 1e4 standard deviations the bracket is 1 / z^2 to every digit that is left of it.
        log_bracket = np.where(size < 1e4, np.log(np.maximum(bracket, 1e-300)), -2.0 * np.log(size))
        log_gain_tail = log_density + log_bracket  # of -|z|
        positive = z > 0.0
        # E[(z + e)+] = z + E[(-z + e)+]
        log_gain = np.where(positive, np.log(np.where(positive, z, 1.0) + np.exp(log_gain_tail)), log_gain_tail)
        log_cdf = np.where(positive, np.log1p(-np.exp(log_tail)), log_tail)
    beyond = np.isneginf(z)
    log_gain[beyond] = log_cdf[beyond] = log_density[beyond] = -np.inf
    return log_gain, log_cdf, log_density


def _log_difference(larger: Array, smaller: Array) -> Array:
    """log(exp(larger) - exp(smaller)) for larger > smaller, ``smaller`` possibly -inf."""
    # A box so thin that rounding eats it still gets a finite logarithm.
    return np.asarray(larger + np.log(-np.expm1(np.minimum(smaller - larger, -1e-14))))


def _difference(log_values: Array, log_width: Array, edges: _Edges) -> Array:
    """(value at the lower edge - value at the upper edge) / width, per box."""
    return np.asarray(np.exp(log_values[edges.lower] - log_width) - np.exp(log_values[edges.upper] - log_width))
