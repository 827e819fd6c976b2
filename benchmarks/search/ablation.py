"""MM-MO with a piece of its model changed, for the ablation: other samplers of the tables with names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.samplers.common.history import History
from mergefront.optimizer.samplers.common.initial_design import sobol_points
from mergefront.optimizer.samplers.common.units import compress_tail
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process, log_posterior
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, SMOOTH, Kernel
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess, Surrogate
from mergefront.optimizer.samplers.mmmo import proposals
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement
from mergefront.optimizer.samplers.mmmo.optimize_acqf import maximise
from mergefront.optimizer.samplers.mmmo.proposals import Observations, Proposed, propose
from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler
from mergefront.optimizer.seeding import derive_seed

KERNELS = {"Matern": (MATERN,), "squared exponential": (SMOOTH,), "by evidence": (MATERN, SMOOTH)}
"""Of several the one with the highest posterior density, for each objective by itself."""


def evidence(process: GaussianProcess) -> float:
    """Log marginal likelihood plus log priors at the fitted lengthscales and noise."""
    unknown = np.full(len(process.x), np.nan)
    log_noise = float(np.log(process.noise[0]))
    return log_posterior(
        np.log(process.lengthscales), log_noise, process.x, process.standardised, unknown, process.kernel
    )[0]


@dataclass(frozen=True)
class _Fit:
    kernels: Sequence[Kernel]

    def __call__(self, data: Observations) -> Surrogate:
        x, y = data.features(data.x), compress_tail(data.y, data.reference)
        processes = []
        for j in range(y.shape[1]):
            found = [
                fit_gaussian_process(x, y[:, j], data.noise_variance[:, j], kernel, unexplained=data.unexplained)
                for kernel in self.kernels
            ]
            processes.append(max(found, key=evidence) if len(found) > 1 else found[0])
        return Surrogate(tuple(processes))


class OtherKernel(MMMOSampler):
    """With the kernels of that name in ``KERNELS``; of up to 150 points and up to four objectives."""

    def __init__(self, kernel: str, **options: Any) -> None:
        super().__init__(**options)
        self._fit = _Fit(KERNELS[kernel])

    def _model_point(self, data: Observations, history: History) -> Proposed | None:
        seed = derive_seed(self._seed, history.round_start, history.slot, "acquisition")
        return propose(data, self._fit(data), self._budget, seed)


def quadratic(points: Array) -> Array:
    """Coordinates of points of the unit cube (``n x d``) from -1 to 1 and their products: ``n x d (d + 3) / 2``."""
    centred = 2.0 * points - 1.0
    first, second = np.triu_indices(points.shape[1])
    return np.concatenate([centred, centred[:, first] * centred[:, second]], axis=1)


def _matern_and_quadratic(a: Array, b: Array, lengthscales: Array) -> tuple[Array, Array]:
    """Matern 5/2 and a quadratic whose coefficients are standard normal; the slope is of Matern alone."""
    value, slope = MATERN.with_slope(a, b, lengthscales)
    return value + quadratic(a) @ quadratic(b).T, slope


TREND = Kernel(_matern_and_quadratic, MATERN.lengthscales)


class _WithTrend(HypervolumeImprovement):
    """With ``TREND`` the variance is another at every point; the gradient is of central differences."""

    def _terms(self, points: Array, conditional: Any, edges: Any) -> Any:
        if conditional.kernel is TREND:
            conditional = replace(conditional, prior=1.0 + (quadratic(points) ** 2).sum(axis=1))
        return super()._terms(points, conditional, edges)

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        steps = 1e-5 * np.eye(len(point))
        values = self.values(np.concatenate([point[None, :], point + steps, point - steps]))
        return float(values[0]), (values[1 : len(point) + 1] - values[len(point) + 1 :]) / 2e-5


class QuadraticTrend(MMMOSampler):
    """Scores are a quadratic of the weights plus a Matern process, always or (``by_evidence``) for each objective where
    that has more evidence than Matern alone; without constraints and pending trials, of weights that are their own
    features, up to 150 points and four objectives."""

    def __init__(self, *, by_evidence: bool, **options: Any) -> None:
        super().__init__(**options)
        self._fit = _Fit((MATERN, TREND) if by_evidence else (TREND,))

    def _model_point(self, data: Observations, history: History) -> Proposed | None:
        seed = derive_seed(self._seed, history.round_start, history.slot, "acquisition")
        rng, surrogate, nothing = np.random.default_rng(seed), self._fit(data), data.x[:0]
        half = rng.standard_normal((self._budget.samples // 2, *data.y.shape))
        samples = np.concatenate([half, -half])
        acquisition = _WithTrend(surrogate, nothing, data.reference, data.outside, samples)
        near, sobol = proposals._near_elites(data, rng), sobol_points(data.encoder, seed, 0, self._budget.raw_points)
        starts = proposals._untaken(np.concatenate([near, sobol]), data)
        optima, _ = maximise(acquisition, starts, data.encoder, self._budget)
        candidates = proposals._untaken(np.concatenate([optima, near]), data)
        return Proposed(np.asarray(candidates[np.argmax(acquisition.values(candidates))]))
