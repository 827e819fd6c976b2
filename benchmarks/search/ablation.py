"""MM-MO with a piece of its model changed, for the ablation: other samplers of the tables with names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergefront.optimizer.samplers.common.history import History
from mergefront.optimizer.samplers.common.units import compress_tail
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process, log_posterior
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, SMOOTH, Kernel
from mergefront.optimizer.samplers.gaussian_process.posterior import GaussianProcess, Surrogate
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
