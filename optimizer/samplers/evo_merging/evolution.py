"""CMA-ES whose state is recomputed from observed generations; knows nothing of studies.

A generation counts once all its members are in. Telling the same generations to a fresh optimiser gives the same
distribution bit for bit, so nothing needs to be stored (Optuna's own sampler stores a pickle).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cmaes import CMA, SepCMA

from mergefront.optimizer.arrays import Array

SEPARABLE_ABOVE = 30
"""Dimensions above which a full covariance matrix takes more generations to learn than a search has. Chosen by hand."""


@dataclass(frozen=True)
class EvolutionPlan:
    """A CMA-ES: initial mean (``d``), step size, upper bounds (``d``; the lower ones are 0), and generation size."""

    mean: Array
    sigma: float
    upper: Array
    population: int
    separable: bool


Member = tuple[Array, float]
"""A point (``d``) and its loss, NaN when it could not be evaluated."""


class Evolution:
    """The distribution after some generations."""

    def __init__(self, plan: EvolutionPlan) -> None:
        self.plan = plan
        self._keys: list[bytes] = []
        self._optimiser = self._fresh()

    def _fresh(self) -> CMA | SepCMA:
        make = SepCMA if self.plan.separable else CMA
        bounds = np.stack([np.zeros_like(self.plan.upper), self.plan.upper], axis=1)
        return make(
            mean=self.plan.mean.copy(),
            sigma=self.plan.sigma,
            bounds=bounds,
            population_size=self.plan.population,
            seed=0,
        )

    def replay(self, generations: Sequence[Sequence[Member]]) -> None:
        """Brings the state to that after ``generations``, each of ``population`` members, oldest first.

        A member without a loss gets the worst one of its generation; a generation in which nothing could be
        evaluated teaches nothing and is passed over.
        """
        keys = [_key(generation) for generation in generations]
        if keys[: len(self._keys)] != self._keys:
            self._keys, self._optimiser = [], self._fresh()
        for generation, key in zip(generations[len(self._keys) :], keys[len(self._keys) :], strict=True):
            losses = [loss for _, loss in generation if math.isfinite(loss)]
            if losses:
                worst = max(losses)
                self._optimiser.tell([(x, loss if math.isfinite(loss) else worst) for x, loss in generation])
            self._keys.append(key)

    def sample(self, seed: int) -> Array:
        """A point of the present distribution (``d``), a function of the state and the seed."""
        self._optimiser.reseed_rng(seed % 2**32)
        return np.asarray(self._optimiser.ask(), dtype=float)


def _key(generation: Sequence[Member]) -> bytes:
    return b"".join(np.append(x, loss).tobytes() for x, loss in generation)
