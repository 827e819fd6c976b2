"""Search for the minimum of a smooth loss with a Gaussian process inside a trust region; knows nothing of studies.

The loss of a merge is smooth in its coefficients (``cat`` is linear in the weights before the network bends it), so
after one evaluation per coefficient a surrogate knows a descent direction, and a model-based method converges in
tens of evaluations per dimension where an evolution strategy needs hundreds. The model is the maximum a posteriori
Gaussian process of ``gaussian_process``; the region is a box around the best point, longer in dimensions in which
the loss changes slowly, that grows on success and shrinks on failure (Eriksson et al., "Scalable Global
Optimization via Local Bayesian Optimization", 2019; derivative-free trust-region methods since Powell).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve
from scipy.optimize import minimize

from mergefront.optimizer.arrays import Array, Integers, Mask
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process
from mergefront.optimizer.samplers.gaussian_process.kernel import SMOOTH
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess

EXACT_NOISE = 1e-6
"""Noise variance, as a share of the values' variance, of losses that show no noise."""
LEARNED_NOISE_FLOOR = 2e-4
"""Learned noise below this share means that the values are as good as exact."""
NEAREST = 200
"""Observed points nearest to the best one that the model is fitted to."""
LARGEST_EXCESS = 1e100
"""Of a loss over the median, in units of the median's distance from the best: keeps numbers finite."""
SIDE_RATIO = 3.0
"""How much longer or shorter than average a side of the region may be."""


@dataclass(frozen=True)
class RegionRule:
    """How the half side of the region (a share of the ranges) follows success and failure. Chosen by hand."""

    initial: float = 0.1
    restart: float = 0.05
    grow: float = 1.5
    shrink: float = 0.6
    largest: float = 0.4
    smallest: float = 0.003
    gain: float = 1e-3
    """A success lowers the best loss by at least this share of the median's distance from the best."""
    converged: float = 0.01
    """A region that gained less than this share of all progress until it shrank to nothing has converged."""


@dataclass(frozen=True)
class Region:
    """The region's half side and how the search has fared in it."""

    half: float
    best_at_restart: float
    """Lowest loss when the region was last (re)started."""
    turns: int = 0
    """How often it shrank to nothing without much gain since it was restarted: a local minimum was found."""
    explore: bool = False
    """Whether the next point should rather teach the model something: the last step to its minimum failed."""

    def after(self, rule: RegionRule, loss: float, best: float, spread: float, progress: float) -> Region:
        """The region after a point with ``loss`` inside it, when ``best`` was the lowest before.

        ``spread`` is the distance of the median loss from the best one, ``progress`` that of the best one from
        where the search began. A region that shrank to nothing is restarted.
        """
        if loss < best - rule.gain * spread:
            return replace(self, half=min(self.half * rule.grow, rule.largest), explore=False)
        if self.explore:
            return replace(self, explore=False)
        half = self.half * rule.shrink
        if half >= rule.smallest:
            return replace(self, half=half, explore=True)
        converged = self.best_at_restart - min(best, loss) <= rule.converged * progress
        return Region(rule.restart, min(best, loss), self.turns + converged)


def compress(losses: Array) -> Array:
    """Losses (``n``) with those above the median squeezed logarithmically: a collapsed merge is any number of
    nats away, and would flatten the region that matters. Identity below the median, increasing and smooth."""
    median, best = float(np.median(losses)), float(losses.min())
    spread = max(median - best, 1e-12 * abs(median), 1e-150)
    excess = np.minimum(np.maximum(losses - median, 0.0) / spread, LARGEST_EXCESS)
    return np.where(losses > median, median + spread * np.log1p(excess), losses)


def fit_model(points: Array, losses: Array) -> GaussianProcess:
    """The process fitted to points (``n x d``) and compressed losses (``n``), noise learned or, where none shows,
    taken for next to nothing. Raises ``numpy.linalg.LinAlgError``."""
    unknown = np.full(len(losses), np.nan)
    learned = fit_gaussian_process(points, losses, unknown, SMOOTH)
    if learned.noise[0] > LEARNED_NOISE_FLOOR:
        return learned
    return fit_gaussian_process(points, losses, np.full(len(losses), EXACT_NOISE * learned.scale**2), SMOOTH)


def nearest(points: Array, best: Array, count: int = NEAREST) -> Integers:
    """Integers of the ``count`` points (``n x d``) nearest to ``best`` (``d``), ascending."""
    distance = ((points - best) ** 2).sum(axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:count])


def region_bounds(model: GaussianProcess, best: Array, half: float, free: Mask) -> Array:
    """The box (``d x 2``) around the best point (``d``), its sides in proportion to the lengthscales; columns that
    are not ``free`` (``d``) have no width."""
    relative = model.covariance.lengthscales / math.exp(float(np.log(model.covariance.lengthscales[free]).mean()))
    sides = np.where(free, half * np.clip(relative, 1.0 / SIDE_RATIO, SIDE_RATIO), 0.0)
    return np.stack([np.maximum(best - sides, 0.0), np.minimum(best + sides, 1.0)], axis=1)


def minimise(
    model: GaussianProcess,
    bounds: Array,
    best: Array,
    optimism: float,
    penalty: tuple[Array, Array],
    rng: np.random.Generator,
    restarts: int = 3,
) -> Array:
    """The point (``d``) in the box where mean - optimism x standard deviation + penalty is least.

    ``penalty`` is (slopes, zeros), each ``d``: a known term sum_i slopes_i |x_i - zeros_i| in the losses' unit.
    """
    slopes, zeros = penalty[0] / model.scale, penalty[1]
    inverse = cho_solve((model.cholesky, True), np.eye(len(model.x))) if optimism > 0.0 else None

    def value_and_gradient(x: Array) -> tuple[float, Array]:
        difference = (x - model.x) / model.covariance.lengthscales
        k = np.exp(-0.5 * (difference**2).sum(axis=1))
        slope = -(difference / model.covariance.lengthscales) * k[:, None]
        value, gradient = float(k @ model.weights), slope.T @ model.weights
        if inverse is not None:
            solved = inverse @ k
            deviation = math.sqrt(max(1.0 - float(k @ solved), 1e-12))
            value -= optimism * deviation
            gradient = gradient + optimism * (slope.T @ solved) / deviation
        value += float(slopes @ np.abs(x - zeros))
        return value, gradient + slopes * np.sign(x - zeros)

    width = bounds[:, 1] - bounds[:, 0]
    starts: Sequence[Array] = [
        np.clip(best + 0.01 * width * rng.standard_normal(len(best)), bounds[:, 0], bounds[:, 1]),
        *(bounds[:, 0] + rng.random(len(best)) * width for _ in range(restarts - 1)),
    ]
    found = [
        minimize(value_and_gradient, x, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60})
        for x in starts
    ]
    return np.asarray(min(found, key=lambda result: float(result.fun)).x)
