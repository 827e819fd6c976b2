"""Points of the unit cube as recipes of a space, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.recipes.unit_cube import Encoder


def recipe_at(space: MergeSpace, vector: Sequence[float]) -> Recipe:
    """The recipe at a point of [0, 1]^d: a column for each number and for each choice."""
    return space.recipe(Encoder(space.distributions()).decode(np.asarray(vector, dtype=float)))


def vector_of(space: MergeSpace, params: Mapping[str, Any]) -> list[float]:
    """Optuna parameters as a point of [0, 1]^d."""
    return [float(coordinate) for coordinate in Encoder(space.distributions()).encode(params)]
