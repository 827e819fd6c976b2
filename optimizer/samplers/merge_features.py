"""Coefficients as the merge sees them, which is what a surrogate should see.

A merge does not depend on all that its coefficients say:

- where a method divides by the sum of the weights, only their proportions matter: 0.2, 0.4 is the merge of 0.4, 0.8;
- the density of an expert matters as much as the expert does, and not at all at weight 0;
- what the scores depend on most is how far the merge goes along each task vector, all layers together.

So every weight w_m becomes w_m / max_k |w_k| where the weights are normalised (0 when all are 0), and stays w_m
otherwise; every density becomes the weight's feature times the density. The features of a point determine its merge:
two points with equal features are one candidate. Where more is known of the arithmetic (``MergeRule.additive``) and
the coefficients do not say it themselves, the projections on the task vectors (``task_vector_projections``, the mean
over the scopes) are features too, and the coefficients' own count for less. What that is worth:
``docs/benchmarks-search.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.merge_rule import UNKNOWN, MergeRule
from mergefront.optimizer.samplers.encoding import Encoder
from mergefront.optimizer.samplers.task_vector_projections import projections

Array = NDArray[np.float64]

_COEFFICIENT = re.compile(r"(weight|density)\[([^\],]+)((?:,[^\]]*)?)\]")
_STEP = 1e-6
BESIDE_PROJECTIONS = 0.3
"""What a weight's or density's own feature is multiplied with where there are projections."""


@dataclass(frozen=True)
class _Column:
    """A numeric parameter on a linear scale: value = low + coordinate (high - low)."""

    index: int
    low: float
    high: float

    def values(self, points: Array) -> Array:
        return self.low + points[:, self.index] * (self.high - self.low)


@dataclass(frozen=True)
class _Scope:
    """The weights of one scope by expert, and the densities of those experts that have one."""

    weights: dict[str, _Column]
    densities: dict[str, _Column]

    @property
    def columns(self) -> list[int]:
        return [column.index for columns in (self.weights, self.densities) for column in columns.values()]

    def projections(self, rule: MergeRule, points: Array) -> Array:
        """On the scope's experts (``n x e``)."""
        weights = np.stack([column.values(points) for column in self.weights.values()], axis=1)
        if rule.proportions:
            largest = weights.max(axis=1, keepdims=True)
            weights = weights / np.where(largest > 0.0, largest, 1.0)
        else:
            weights = weights / max(column.high for column in self.weights.values())
        densities = np.ones_like(weights)
        for i, expert in enumerate(self.weights):
            if expert in self.densities:
                densities[:, i] = self.densities[expert].values(points)
        return projections(rule, weights, densities)


class MergeFeatures:
    """The map from points of the unit cube (``n x d``) to features (``n x f``): projections, then column by column.

    ``rule`` is the merge's arithmetic. Weights that may be negative are left as they are. ``active`` False makes the
    identity.
    """

    def __init__(self, encoder: Encoder, rule: MergeRule = UNKNOWN, active: bool = True) -> None:
        self._rule = rule
        self._dimension = encoder.dimension
        weights: dict[str, dict[str, _Column]] = {}
        densities: dict[tuple[str, str], _Column] = {}
        for name, (index, low, high) in (encoder.numeric_columns if active else {}).items():
            match = _COEFFICIENT.fullmatch(name)
            if match is None:
                continue
            parameter, expert, scope = match.groups()
            if parameter == "weight":
                weights.setdefault(scope, {})[expert] = _Column(index, low, high)
            else:
                densities[expert, scope] = _Column(index, low, high)
        positive = all(column.low >= 0.0 for scope in weights.values() for column in scope.values())
        self._groups = [
            list(columns.values())
            for columns in weights.values()
            if rule.proportions and len(columns) > 1 and all(column.low >= 0.0 for column in columns.values())
        ]
        self._densities = self._scaled_densities(weights, densities)
        self._scopes = self._projected(weights, densities) if rule.additive and positive else []
        self._experts = list(dict.fromkeys(expert for scope in self._scopes for expert in scope.weights))
        self._scale = np.ones(encoder.dimension)
        if self._scopes:
            own = [column.index for scope in weights.values() for column in scope.values()]
            self._scale[own + [column.index for column in densities.values()]] = BESIDE_PROJECTIONS
        self.identity = not self._groups and not self._densities and not self._scopes

    def _scaled_densities(
        self, weights: dict[str, dict[str, _Column]], densities: dict[tuple[str, str], _Column]
    ) -> list[tuple[int, int, float]]:
        """Of every density to be multiplied with a weight's feature: its column, the weight's and the lowest share."""
        proportional = {column.index for columns in self._groups for column in columns}
        found = []
        for (expert, scope), column in densities.items():
            weight = weights.get(scope, {}).get(expert) or weights.get("", {}).get(expert)
            if weight is not None and weight.low >= 0.0:
                # A weight that is no proportion yet is taken relative to the top of its range.
                lowest = 0.0 if weight.index in proportional else weight.low / weight.high
                found.append((column.index, weight.index, lowest))
        return found

    def _projected(
        self, weights: dict[str, dict[str, _Column]], densities: dict[tuple[str, str], _Column]
    ) -> list[_Scope]:
        """The scopes to project; none where the weights' own features say the same."""
        scopes = []
        for scope, columns in weights.items():
            beside = {
                expert: column
                for expert in columns
                if (column := densities.get((expert, scope)) or densities.get((expert, ""))) is not None
            }
            scopes.append(_Scope(columns, beside))
        sparse = self._rule.sparsifier != "none" and any(scope.densities for scope in scopes)
        return scopes if sparse or self._rule.signs or len(scopes) > 1 else []

    def __call__(self, points: Array) -> Array:
        """Features (``n x f``) of points (``n x d``)."""
        if self.identity:
            return points
        own = self._own(points)
        if not self._scopes:
            return own
        along = np.zeros((len(points), len(self._experts)))
        for scope in self._scopes:
            along[:, self._places(scope)] += scope.projections(self._rule, points) / len(self._scopes)
        return np.concatenate([along, own], axis=1)

    def jacobian(self, point: Array) -> Array:
        """Of the features in the coordinates at one point (``d``): ``f x d``, a row a feature."""
        if self.identity:
            return np.eye(len(point))
        around = point + _STEP * np.concatenate([np.zeros((1, len(point))), np.eye(len(point))])
        own = self._own(around)
        own_slopes = (own[1:] - own[0]).T / _STEP
        if not self._scopes:
            return np.asarray(own_slopes)
        slopes = np.zeros((len(self._experts), len(point)))
        for scope in self._scopes:
            columns = scope.columns
            along = scope.projections(self._rule, around[[0, *(column + 1 for column in columns)]])
            slopes[np.ix_(self._places(scope), columns)] += (along[1:] - along[0]).T / (_STEP * len(self._scopes))
        return np.concatenate([slopes, own_slopes])

    def _places(self, scope: _Scope) -> list[int]:
        return [self._experts.index(expert) for expert in scope.weights]

    def _own(self, points: Array) -> Array:
        """The features of weights and densities, column by column (``n x d``)."""
        features = points.copy()
        for columns in self._groups:
            values = np.stack([column.values(points) for column in columns], axis=1)
            largest = values.max(axis=1, keepdims=True)
            index = [column.index for column in columns]
            features[:, index] = np.where(largest > 0.0, values / np.where(largest > 0.0, largest, 1.0), 0.0)
        for column, weight, lowest in self._densities:
            features[:, column] = points[:, column] * (lowest + (1.0 - lowest) * features[:, weight])
        return features * self._scale
