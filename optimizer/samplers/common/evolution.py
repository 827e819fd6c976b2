"""CMA-ES whose state is recomputed from observed generations; knows nothing of studies.

A generation counts once all its members are in. Telling the same generations to a fresh optimiser gives the same
distribution bit for bit, in milliseconds, so nothing needs to be stored. Optuna's own sampler stores a pickle in the
database and loads it again, so that whoever can write the database can run code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from cmaes import CMA, SepCMA

from mergefront.optimizer.arrays import Array

SEPARABLE_ABOVE = 30
"""Dimensions above which a full covariance matrix takes more generations to learn than a search has. Chosen by hand."""


Member = tuple[Array, float]
"""A point (``d``) and its loss, NaN when it could not be evaluated."""


class Evolution:
    """The distribution after some generations.

    It starts at ``mean`` (``d``) with the step ``sigma``, between 0 and ``upper`` (``d``). ``population`` is the size
    of a generation, by default 4 + floor(3 log d).
    """

    def __init__(
        self, mean: Array, sigma: float, upper: Array, population: int | None = None, separable: bool = False
    ) -> None:
        bounds = np.stack([np.zeros_like(upper), upper], axis=1)
        make = SepCMA if separable else CMA
        # cmaes moves the mean that it is given.
        self._fresh: Callable[[], CMA | SepCMA] = lambda: make(
            mean=mean.copy(), sigma=sigma, bounds=bounds, population_size=population, seed=0
        )
        self._keys: list[bytes] = []
        self._optimiser = self._fresh()

    @property
    def population(self) -> int:
        """Members of a generation."""
        return int(self._optimiser.population_size)

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
