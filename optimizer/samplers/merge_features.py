"""Coefficients as the merge sees them, which is what a surrogate should see.

A merge does not depend on all that its coefficients say:

- where a method divides by the sum of the weights, only their proportions matter: 0.2, 0.4 is the merge of 0.4, 0.8;
- the density of an expert matters as much as the expert does, and not at all at weight 0.

So every weight w_m becomes w_m / max_k |w_k| where the weights are normalised (0 when all are 0), and stays w_m
otherwise; every density becomes the weight's feature times the density. The features of a point determine its merge:
two points with equal features are one candidate. Of merges of small networks, a Gaussian process predicts the scores
with a third less error in these features than in the coefficients (``docs/benchmarks-search.md``).
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.samplers.encoding import Encoder

Array = NDArray[np.float64]

_COEFFICIENT = re.compile(r"(weight|density)\[([^\],]+)((?:,[^\]]*)?)\]")
_STEP = 1e-7


class MergeFeatures:
    """The map from points of the unit cube (``n x d``) to features (``n x d``), column by column.

    ``normalised`` says that the merge divides by the sum of the weights of a scope (an expert's weights in one block of
    layers, say) and that all of them are searched. Weights that may be negative are left as they are. ``active``
    False makes the identity.
    """

    def __init__(self, encoder: Encoder, normalised: bool, active: bool = True) -> None:
        columns = encoder.numeric_columns if active else {}
        weights: dict[str, list[tuple[int, float, float]]] = {}
        owner: dict[tuple[str, str], int] = {}
        densities: list[tuple[str, str, int]] = []
        for name, (column, low, high) in columns.items():
            match = _COEFFICIENT.fullmatch(name)
            if match is None:
                continue
            parameter, expert, scope = match.groups()
            if parameter == "weight":
                weights.setdefault(scope, []).append((column, low, high))
                owner[expert, scope] = column
            else:
                densities.append((expert, scope, column))
        self._groups: list[tuple[NDArray[np.int_], Array, Array]] = []
        for members in weights.values():
            index = np.array([column for column, _, _ in members])
            lowest = np.array([low for _, low, _ in members])
            highest = np.array([high for _, _, high in members])
            if normalised and len(members) > 1 and (lowest >= 0.0).all():
                self._groups.append((index, lowest, highest))
        scaled = {column for index, _, _ in self._groups for column in index}
        self._densities: list[tuple[int, int, float, float]] = []
        lows = {column: (low, high) for column, low, high in columns.values()}
        for expert, scope, column in densities:
            weight = owner.get((expert, scope), owner.get((expert, "")))
            if weight is not None and lows[weight][0] >= 0.0:
                # A weight that is no proportion yet is taken relative to the top of its range.
                low, high = (0.0, 1.0) if weight in scaled else lows[weight]
                self._densities.append((column, weight, low / high, 1.0 - low / high))
        self.identity = not self._groups and not self._densities

    def __call__(self, points: Array) -> Array:
        """Features (``n x d``) of points (``n x d``)."""
        if self.identity:
            return points
        features = points.copy()
        for index, low, high in self._groups:
            values = low + points[:, index] * (high - low)
            largest = values.max(axis=1, keepdims=True)
            features[:, index] = np.where(largest > 0.0, values / np.where(largest > 0.0, largest, 1.0), 0.0)
        for column, weight, offset, slope in self._densities:
            features[:, column] = points[:, column] * (offset + slope * features[:, weight])
        return features

    def jacobian(self, point: Array) -> Array:
        """Of the features in the coordinates at one point (``d``): ``d x d``, a row a feature."""
        if self.identity:
            return np.eye(len(point))
        around = self(np.concatenate([point[None, :], point[None, :] + _STEP * np.eye(len(point))]))
        return np.asarray(((around[1:] - around[0]) / _STEP).T)
