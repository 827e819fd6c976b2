"""Coefficients as the merge sees them, which is what a surrogate should see.

A merge does not depend on all that its coefficients say:

- where a method divides by the sum of the weights, only their proportions matter: 0.2, 0.4 is the merge of 0.4, 0.8;
- the density of an expert matters as much as the expert does, and not at all at weight 0;
- a coefficient that the chosen method does not use does not count, and neither does a parameter of a plain study whose
  condition does not hold (``Encoder.masked``);
- what the scores depend on most is how far the merge goes along each task vector.

So every weight w_m becomes w_m / max_k |w_k| where the weights are normalised (0 when all are 0), and stays w_m
otherwise; every density becomes the weight's feature times the density. The features of a point determine its merge:
two points with equal features are one candidate. Where more is known of the arithmetic (``MergeRule.additive``) and
the coefficients do not say it themselves, the projections on the task vectors (``task_vector_projections``) are
features too, and the coefficients' own count for less. What that is worth: ``docs/benchmarks-search.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.recipes.grouping import CoefficientName, parameter_of
from mergefront.optimizer.recipes.merge_rule import UNKNOWN, MergeRule
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.mmmo.task_vector_projections import projection_slopes, projections

_Scope = tuple[str | None, tuple[str, int] | None]
"""The module kind and the position that a coefficient is for."""
_EVERYWHERE: _Scope = (None, None)
_MOST_BY_DIFFERENCES = 32
"""Coordinates up to which gradients are finite differences: searches that were recorded and measured rest on their
digits, and they cost little there. With more of them their cost grows with the square."""
_STEP = 1e-6
"""Of the finite differences, in the unit cube. Chosen by hand."""
PROJECTED, BESIDE_PROJECTIONS = 1.6, 0.5
"""Factors of the projections and, beside them, of the own features of weights and densities, which
shorten and lengthen lengthscales. Chosen by hand; prediction errors with them are in docs/benchmarks-search.md."""


@dataclass(frozen=True)
class _Column:
    """A numeric parameter on a linear scale: value = low + coordinate (high - low)."""

    index: int
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    def values(self, points: Array) -> Array:
        return self.low + points[:, self.index] * self.width


@dataclass(frozen=True)
class _Projected:
    """The weights of all experts, and the densities of those that have one."""

    rule: MergeRule
    weights: list[_Column]
    densities: list[_Column | None]

    @property
    def columns(self) -> list[int]:
        return [column.index for column in (*self.weights, *self.densities) if column is not None]

    def __call__(self, points: Array) -> Array:
        """The projections on every expert (``n x e``)."""
        weights, densities, _ = self._coefficients(points)
        return PROJECTED * projections(self.rule, weights, densities)

    def slopes(self, point: Array, along: Array) -> Array:
        """Of sums of the projections, ``along`` (``r x e``) their factors, at a point (``d``): ``r x d``."""
        weights, densities, divisor = (rows[0] for rows in self._coefficients(point[None, :]))
        in_weights, in_densities = projection_slopes(self.rule, weights, densities, PROJECTED * along)
        in_weights = in_weights / divisor
        if self.rule.proportions:
            # Where several weights are the largest, each of them grows alone.
            in_weights -= np.outer(in_weights @ weights, weights == 1.0)
        slopes = np.zeros((len(along), len(point)))
        for i, column in enumerate(self.weights):
            slopes[:, column.index] = in_weights[:, i] * column.width
        for i, density in enumerate(self.densities):
            if density is not None:
                slopes[:, density.index] = in_densities[:, i] * density.width
        return slopes

    def _coefficients(self, points: Array) -> tuple[Array, Array, Array]:
        """Weights and densities from 0 to 1 (``n x e``), and what the weights were divided by (``n x 1``)."""
        weights = np.stack([column.values(points) for column in self.weights], axis=1)
        if self.rule.proportions:
            largest = weights.max(axis=1, keepdims=True)
            divisor = np.where(largest > 0.0, largest, 1.0)
        else:
            divisor = np.full((len(points), 1), max(column.high for column in self.weights))
        densities = np.ones_like(weights)
        for i, column in enumerate(self.densities):
            if column is not None:
                densities[:, i] = column.values(points)
        return weights / divisor, densities, divisor


class MergeFeatures:
    """The map from points of the unit cube (``n x d``) to features (``n x f``): projections, then column by column.

    ``rule`` is the merge's arithmetic. Weights that may be negative are left as they are. ``active`` False makes the
    identity.
    """

    def __init__(self, encoder: Encoder, rule: MergeRule = UNKNOWN, active: bool = True) -> None:
        weights: dict[_Scope, dict[str, _Column]] = {}
        densities: dict[tuple[str, _Scope], _Column] = {}
        for name, (index, low, high) in (encoder.numeric_columns if active else {}).items():
            read = CoefficientName.guess(name)
            if read.expert is None:
                continue
            scope = (read.module, read.position)
            if read.parameter == "weight":
                weights.setdefault(scope, {})[read.expert] = _Column(index, low, high)
            elif read.parameter == "density":
                densities[read.expert, scope] = _Column(index, low, high)
        self._groups = [
            list(columns.values())
            for columns in weights.values()
            if rule.proportions and len(columns) > 1 and all(column.low >= 0.0 for column in columns.values())
        ]
        self._densities = self._scaled_densities(weights, densities)
        self._projected = _projected(rule, weights, densities)
        self._scale = np.ones(encoder.dimension)
        if self._projected is not None:
            self._scale[self._projected.columns] = BESIDE_PROJECTIONS
        self._conditions = _conditions(rule, encoder) if active else []
        self._encoder = encoder
        changes = self._groups or self._densities or self._conditions or encoder.conditions
        self.identity = not changes and self._projected is None

    def _scaled_densities(
        self, weights: dict[_Scope, dict[str, _Column]], densities: dict[tuple[str, _Scope], _Column]
    ) -> list[tuple[int, int, float]]:
        """Of every density to be multiplied with a weight's feature: its column, the weight's and the lowest share."""
        proportional = {column.index for columns in self._groups for column in columns}
        found = []
        for (expert, scope), column in densities.items():
            weight = weights.get(scope, {}).get(expert) or weights.get(_EVERYWHERE, {}).get(expert)
            if weight is not None and weight.low >= 0.0:
                # A weight that is no proportion yet is taken relative to the top of its range.
                lowest = 0.0 if weight.index in proportional else weight.low / weight.high
                found.append((column.index, weight.index, lowest))
        return found

    def __call__(self, points: Array) -> Array:
        """Features (``n x f``) of points (``n x d``)."""
        if self.identity:
            return points
        points = self._encoder.masked(points)
        own = self._own(points)
        return own if self._projected is None else np.concatenate([self._projected(points), own], axis=1)

    def gradient(self, point: Array, in_features: Array) -> Array:
        """In the coordinates (``d``), of a function whose gradient in the features (``f``) is known at a point."""
        if len(point) > _MOST_BY_DIFFERENCES and not self.identity:
            return np.asarray(self.slopes(point, in_features[None, :])[0])
        return np.asarray(in_features @ self._differences(point))

    def _differences(self, point: Array) -> Array:
        """The Jacobian of the features at one point (``d``) by finite differences: ``f x d``."""
        if self.identity:
            return np.eye(len(point))
        around = self._encoder.masked(point + _STEP * np.concatenate([np.zeros((1, len(point))), np.eye(len(point))]))
        own = self._own(around)
        own_slopes = (own[1:] - own[0]).T / _STEP
        if self._projected is None:
            return np.asarray(own_slopes)
        columns = self._projected.columns
        along = self._projected(around[[0, *(column + 1 for column in columns)]])
        slopes = np.zeros((along.shape[1], len(point)))
        slopes[:, columns] = (along[1:] - along[0]).T / _STEP
        return np.concatenate([slopes, own_slopes])

    def slopes(self, point: Array, along: Array) -> Array:
        """Of sums of the features in the coordinates of one point (``d``): ``r x d``.

        ``along`` (``r x f``) has the factors of ``r`` sums: one row for the gradient of a function of the features, the
        identity for the whole Jacobian, which costs more.
        """
        if self.identity:
            return along
        masked = self._encoder.masked(point[None, :])[0]
        if self._projected is None:
            slopes = along @ self._own_jacobian(masked)
        else:
            projected = len(self._projected.weights)
            slopes = along[:, projected:] @ self._own_jacobian(masked)
            slopes += self._projected.slopes(masked, along[:, :projected])
        slopes[:, self._encoder.is_masked(point[None, :])[0]] = 0.0
        return slopes

    def _own_jacobian(self, point: Array) -> Array:
        """Of ``_own`` at one point (``d``): ``d x d``."""
        features, slopes = point.copy(), np.eye(len(point))
        for columns in self._groups:
            index = [column.index for column in columns]
            values = np.array([column.values(point[None, :])[0] for column in columns])
            largest = values.max()
            divisor = largest if largest > 0.0 else 1.0
            features[index] = values / divisor
            # Where several weights are the largest, each of them grows alone.
            within = np.eye(len(index)) - np.outer(features[index], values == divisor)
            slopes[np.ix_(index, index)] = within / divisor * np.array([column.width for column in columns])
        for column, weight, lowest in self._densities:
            share = lowest + (1.0 - lowest) * features[weight]
            slopes[column] = point[column] * (1.0 - lowest) * slopes[weight]
            slopes[column, column] = share
            features[column] = point[column] * share
        for column, choices in self._conditions:
            used = point[choices].sum()
            slopes[column] *= used
            slopes[column, choices] += features[column]
            features[column] *= used
        return slopes * self._scale[:, None]

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
        for column, choices in self._conditions:
            features[:, column] *= points[:, choices].sum(axis=1)
        return features * self._scale


def _projected(
    rule: MergeRule, weights: dict[_Scope, dict[str, _Column]], densities: dict[tuple[str, _Scope], _Column]
) -> _Projected | None:
    """None where the weights' own features say the same, and where layers have weights of their own."""
    if not rule.additive or len(weights) != 1:
        return None
    ((scope, columns),) = weights.items()
    beside = [densities.get((expert, scope)) for expert in columns]
    observed = rule.signs or (rule.sparsifier != "none" and any(beside))
    positive = all(column.low >= 0.0 for column in columns.values())
    return _Projected(rule, list(columns.values()), beside) if observed and positive else None


def _conditions(rule: MergeRule, encoder: Encoder) -> list[tuple[int, list[int]]]:
    """Of every coefficient that not all methods use: its column, and those of the methods that do."""
    methods, users = encoder.choice_columns("method"), dict(rule.used_by)
    found = []
    for name, (column, _, _) in encoder.numeric_columns.items():
        using = users.get(parameter_of(name))
        if using is not None and methods:
            found.append((column, [methods[method] for method in using]))
    return found
