"""What a search over a pool of LoRAs knows when it proposes a trial, as plain numbers; knows nothing of studies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients


@dataclass(frozen=True)
class PoolTrial:
    """One earlier trial: its point (``d``), its loss (NaN when it failed), and how it was proposed."""

    number: int
    point: Array
    loss: float
    finished: bool
    stage: str | None
    """The sampler's own stage; None for anchors and for what others proposed."""

    @property
    def observed(self) -> bool:
        """Whether it finished with a finite loss."""
        return self.finished and math.isfinite(self.loss)


@dataclass(frozen=True)
class Penalties:
    """Factors of mean |density| and mean |weight|, in the loss's unit: the paper's l1 and l2."""

    density: float
    weight: float

    def of(self, coefficients: Coefficients, points: Array) -> Array:
        """What the penalties add to the losses at ``points`` (``n x d``): ``n``."""
        return np.asarray(
            self.density * coefficients.magnitudes(points, coefficients.density)
            + self.weight * coefficients.magnitudes(points, coefficients.weight)
        )

    def slopes(self, coefficients: Coefficients) -> tuple[Array, Array]:
        """The penalties as sum_i slopes_i |x_i - zeros_i| over points in [0, 1]^d; each ``d``."""
        slopes = np.zeros(len(coefficients.widths))
        for factor, columns in ((self.density, coefficients.density), (self.weight, coefficients.weight)):
            if columns.any():
                slopes[columns] = factor * coefficients.widths[columns] / columns.sum()
        return slopes, -coefficients.lows / coefficients.widths


def own_losses(coefficients: Coefficients, trials: Sequence[PoolTrial]) -> dict[str, float]:
    """The loss of each LoRA alone and whole, of those that were observed."""
    single = {coefficients.mix({name: 1.0}).tobytes(): name for name in coefficients.loras}
    found: dict[str, float] = {}
    for trial in trials:
        name = single.get(trial.point.tobytes())
        if name is not None and trial.observed:
            found.setdefault(name, trial.loss)
    return found


def prefilter(coefficients: Coefficients, trials: Sequence[PoolTrial], top: int | None) -> tuple[str, ...]:
    """The ``top`` LoRAs of lowest own loss (all when None), in the space's order; the others count as worst."""
    loras = coefficients.loras
    if top is None or len(loras) <= top:
        return loras
    losses = own_losses(coefficients, trials)
    ranked = sorted(range(len(loras)), key=lambda i: (losses.get(loras[i], math.inf), i))
    return tuple(loras[i] for i in sorted(ranked[:top]))
