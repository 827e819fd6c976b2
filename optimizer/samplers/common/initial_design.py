"""Points before there is a model: one scrambled Sobol sequence per seed, addressed by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.seeding import derive_seed

if TYPE_CHECKING:
    from scipy.stats.qmc import Sobol

FEW_ANCHORS = 3
STARTUP_BESIDE_ANCHORS = 2
FULL_DESIGN = 12
"""Two points beside a few anchors and none beside a full design were measured (docs/benchmarks/search-pieces.md)."""


def scrambled_sobol(dimension: int, seed: int) -> Sobol:
    """A scrambled Sobol sequence in the unit cube."""
    # Importing scipy.stats takes a second, which a search past its first points need not wait.
    from scipy.stats.qmc import Sobol

    return Sobol(dimension, scramble=True, rng=np.random.default_rng(seed))


def sobol_points(encoder: Encoder, seed: int, first: int, count: int) -> Array:
    """Points ``first`` to ``first + count - 1`` of the seed's sequence (``count x d``), each representable."""
    engine = scrambled_sobol(encoder.parameters, derive_seed(seed, "sobol"))
    if first:
        engine.fast_forward(first)
    # scipy warns unless the number drawn is a power of two; the sequence itself does not mind.
    drawn = engine.random_base2(max(count - 1, 0).bit_length()) if not first else engine.random(count)
    return encoder.from_uniform(drawn[:count])


def startup_size(parameters: int, flagged_anchors: int, points: Sequence[Array]) -> int:
    """Number of Sobol points before the first model, given how many anchors are evaluated beside them.

    A few anchors say more about a merge than as many random points, and the model chooses better than chance from
    then on: two points off the anchors' plane are enough. Where there are as many anchors as a design has points and
    they leave no direction out (``points``, ``d`` numbers each, are those that lie in the space), nothing is to be
    added.
    """
    if flagged_anchors >= FEW_ANCHORS:
        return 0 if len(points) >= FULL_DESIGN and _span(np.array(points)) else STARTUP_BESIDE_ANCHORS
    return max(4, min(parameters + 1, FULL_DESIGN))


def _span(points: Array) -> bool:
    return bool(np.linalg.matrix_rank(points - points.mean(axis=0)) == points.shape[1])
