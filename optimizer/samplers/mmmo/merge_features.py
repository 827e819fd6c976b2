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
features too, and the coefficients' own count for less. What that is worth: ``docs/benchmarks/search-pieces.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.recipes.grouping import CoefficientName, parameter_of
from mergefront.optimizer.recipes.merge_rule import UNKNOWN, MergeRule
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.mmmo.task_vector_projections import projections, projections_and_slopes

_Scope = tuple[str | None, tuple[str, int] | None]
"""The module kind and the position that a coefficient is for."""
_EVERYWHERE: _Scope = (None, None)
MOST_BY_DIFFERENCES = 32
"""Coordinates up to which gradients are finite differences: searches that were recorded and measured rest on their
digits, and they cost little there. With more of them their cost grows with the square."""
_STEP = 1e-6
"""Of the finite differences, in the unit cube. Chosen by hand."""
PROJECTED, BESIDE_PROJECTIONS = 1.6, 0.5
"""Factors of the projections and, beside them, of the own features of weights and densities, which
shorten and lengthen lengthscales. Chosen by hand; prediction errors: docs/benchmarks/search-pieces.md."""


Gradient = Callable[[Array], Array]
"""From the gradient of a function of the features (``f``) to that of the function in the coordinates (``d``)."""


@dataclass(frozen=True)
class _Column:
    """A numeric parameter on a linear scale: value = low + coordinate (high - low)."""

    index: int
    low: float
    high: float


class _Columns:
    """Numeric parameters (``k``) that are read together."""

    def __init__(self, columns: Sequence[_Column]) -> None:
        self.index = np.array([column.index for column in columns], dtype=int)
        self.low = np.array([column.low for column in columns])
        self.high = np.array([column.high for column in columns])
        self.width = self.high - self.low

    def values(self, points: Array) -> Array:
        """Of ``points`` (``n x d``): ``n x k``."""
        return np.asarray(self.low + points.take(self.index, axis=1) * self.width)


@dataclass(frozen=True)
class _Projected:
    """The weights of all experts, and the densities of those that have one."""

    rule: MergeRule
    weights: _Columns
    densities: _Columns
    with_density: list[int]
    """Places among the experts of those that have a density."""

    @property
    def columns(self) -> list[int]:
        return [*self.weights.index.tolist(), *self.densities.index.tolist()]

    def __call__(self, points: Array) -> Array:
        """The projections on every expert (``n x e``)."""
        weights, densities, _ = self._coefficients(points)
        return PROJECTED * projections(self.rule, weights, densities)

    def with_gradient(self, point: Array) -> tuple[Array, Gradient]:
        """The projections (``e``) at a point (``d``), and how a gradient in them becomes one in the coordinates."""
        weights, densities, divisor = (rows[0] for rows in self._coefficients(point[None, :]))
        projected, slopes = projections_and_slopes(self.rule, weights, densities)

        def gradient(in_projections: Array) -> Array:
            in_weights, in_densities = (rows[0] for rows in slopes(PROJECTED * in_projections[None, :]))
            if self.rule.proportions:
                # Where several weights are the largest, each of them grows alone.
                in_weights = in_weights - (in_weights @ weights) * (weights == 1.0)
            found = np.zeros(len(point))
            found[self.weights.index] = in_weights / divisor * self.weights.width
            found[self.densities.index] = in_densities[self.with_density] * self.densities.width
            return found

        return PROJECTED * projected, gradient

    def _coefficients(self, points: Array) -> tuple[Array, Array, Array]:
        """Weights and densities from 0 to 1 (``n x e``), and what the weights were divided by (``n x 1``)."""
        weights = self.weights.values(points)
        if self.rule.proportions:
            largest = weights.max(axis=1, keepdims=True)
            divisor = np.where(largest > 0.0, largest, 1.0)
        else:
            divisor = np.full((len(points), 1), self.weights.high.max())
        densities = np.ones_like(weights)
        densities[:, self.with_density] = self.densities.values(points)
        return weights / divisor, densities, divisor


class MergeFeatures:
    """The map from points of the unit cube (``n x d``) to features (``n x f``): projections, then column by column.

    ``rule`` is the merge's arithmetic. Weights that may be negative are left as they are. ``active`` False makes the
    identity. Without ``by_differences`` the gradients of few coordinates are written out too.
    """

    def __init__(
        self, encoder: Encoder, rule: MergeRule = UNKNOWN, active: bool = True, by_differences: bool = True
    ) -> None:
        self._most_by_differences = MOST_BY_DIFFERENCES if by_differences else 0
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
            _Columns(list(columns.values()))
            for columns in weights.values()
            if rule.proportions and len(columns) > 1 and all(column.low >= 0.0 for column in columns.values())
        ]
        scaled = self._scaled_densities(weights, densities)
        self._densities, self._density_weights = (np.array([row[i] for row in scaled], dtype=int) for i in (0, 1))
        self._lowest = np.array([row[2] for row in scaled])
        self._projected = _projected(rule, weights, densities)
        self._scale = np.ones(encoder.dimension)
        if self._projected is not None:
            self._scale[self._projected.columns] = BESIDE_PROJECTIONS
        self._conditions = _conditions(rule, encoder) if active else []
        self._encoder = encoder
        changes = self._groups or scaled or self._conditions or encoder.conditions
        self.identity = not changes and self._projected is None
        columns = [column for of_scope in weights.values() for column in of_scope.values()]
        self.adds_up = (
            self.identity
            and rule.additive
            and len(weights) == 1
            and len(columns) == encoder.dimension
            and all(column.low >= 0.0 for column in columns)
        )
        """Whether a point is nothing but one weight of each model, at least 0, by which its task vector is added."""

    def _scaled_densities(
        self, weights: dict[_Scope, dict[str, _Column]], densities: dict[tuple[str, _Scope], _Column]
    ) -> list[tuple[int, int, float]]:
        """Of every density to be multiplied with a weight's feature: its column, the weight's and the lowest share."""
        proportional = {int(index) for columns in self._groups for index in columns.index}
        found: list[tuple[int, int, float]] = []
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

    def with_gradient(self, point: Array) -> tuple[Array, Gradient]:
        """The features (``f``) at one point (``d``), and how a gradient in them becomes one in the coordinates."""
        if self.identity:
            return point, lambda in_features: in_features
        if len(point) <= self._most_by_differences:
            return self(point[None, :])[0], lambda in_features: in_features @ self._differences(point)
        return self.with_exact_gradient(point)

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

    def with_exact_gradient(self, point: Array) -> tuple[Array, Gradient]:
        """As ``with_gradient``, by slopes that are written out."""
        masked = self._encoder.masked(point[None, :])
        scaled = self._scaled(masked)
        own = self._where_used(scaled.features, masked)[0]
        if self._projected is None:
            projected, in_projected = np.zeros(0), None
        else:
            projected, in_projected = self._projected.with_gradient(masked[0])

        def gradient(in_features: Array) -> Array:
            found = self._own_gradient(masked[0], scaled, in_features[len(projected) :])
            if in_projected is not None:
                found += in_projected(in_features[: len(projected)])
            if self._encoder.conditions:
                found[self._encoder.is_masked(point[None, :])[0]] = 0.0
            return found

        return np.concatenate([projected, own]), gradient

    def _own_gradient(self, point: Array, scaled: _Scaled, in_own: Array) -> Array:
        """From the gradient in ``_own``'s features (``d``) at a point (``d``): its steps backwards, the last first."""
        features, shares = scaled.features[0], scaled.shares[0]
        found: Array = in_own * self._scale
        for column, choices in self._conditions:
            found[choices] += found[column] * features[column]
            found[column] *= point[choices].sum()
        in_densities = found[self._densities]
        found[self._densities] = in_densities * shares
        # One weight may scale several densities.
        np.add.at(found, self._density_weights, in_densities * point[self._densities] * (1.0 - self._lowest))
        for columns, divisor in zip(self._groups, scaled.divisors, strict=True):
            in_group, proportions = found[columns.index], features[columns.index]
            # Where several weights are the largest, each of them grows alone.
            in_group = in_group - (in_group @ proportions) * (proportions == 1.0)
            found[columns.index] = in_group / divisor[0] * columns.width
        return found

    def _own(self, points: Array) -> Array:
        """The features of weights and densities, column by column (``n x d``)."""
        return self._where_used(self._scaled(points).features, points)

    def _scaled(self, points: Array) -> _Scaled:
        """Weights by the largest of their scope, densities by their weights."""
        features, divisors = points.copy(), []
        for columns in self._groups:
            values = columns.values(points)
            largest = values.max(axis=1, keepdims=True)
            divisors.append(np.where(largest > 0.0, largest, 1.0))
            features[:, columns.index] = np.where(largest > 0.0, values / divisors[-1], 0.0)
        shares = self._lowest + (1.0 - self._lowest) * features.take(self._density_weights, axis=1)
        features[:, self._densities] = points.take(self._densities, axis=1) * shares
        return _Scaled(features, shares, divisors)

    def _where_used(self, features: Array, points: Array) -> Array:
        """Features (``n x d``) as far as the method at ``points`` (``n x d``) uses them."""
        features = features.copy()
        for column, choices in self._conditions:
            features[:, column] *= points[:, choices].sum(axis=1)
        return features * self._scale


@dataclass(frozen=True)
class _Scaled:
    features: Array
    """Of all columns, ``n x d``."""
    shares: Array
    """What the densities were multiplied with, ``n x (number of densities)``."""
    divisors: list[Array]
    """What the weights of each scope were divided by, ``n x 1``."""


def _projected(
    rule: MergeRule, weights: dict[_Scope, dict[str, _Column]], densities: dict[tuple[str, _Scope], _Column]
) -> _Projected | None:
    """None where the weights' own features say the same, and where layers have weights of their own."""
    if not rule.additive or len(weights) != 1:
        return None
    ((scope, columns),) = weights.items()
    with_density = [i for i, expert in enumerate(columns) if (expert, scope) in densities]
    beside = _Columns([densities[expert, scope] for expert in columns if (expert, scope) in densities])
    observed = rule.signs or (rule.sparsifier != "none" and with_density)
    positive = all(column.low >= 0.0 for column in columns.values())
    return _Projected(rule, _Columns(list(columns.values())), beside, with_density) if observed and positive else None


def _conditions(rule: MergeRule, encoder: Encoder) -> list[tuple[int, list[int]]]:
    """Of every coefficient that not all methods use: its column, and those of the methods that do."""
    methods, users = encoder.choice_columns("method"), dict(rule.used_by)
    found = []
    for name, (column, _, _) in encoder.numeric_columns.items():
        using = users.get(parameter_of(name))
        if using is not None and methods:
            found.append((column, [methods[method] for method in using]))
    return found
