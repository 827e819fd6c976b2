"""Search spaces as points of the unit cube, exact at both ends.

A numeric parameter is one column in [0, 1] (on a logarithmic scale where the distribution says so), a categorical
one is a one-hot block. Points that a sampler proposes lie on the grid of representable values: the choices and steps
of discrete parameters, and multiples of 1e-4 of the range for continuous ones. That is finer than any score can
tell apart, keeps recipes readable, and absorbs rounding differences between runs of an optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mergefront.optimizer.arrays import Array, Mask

GRID = 10_000
"""Grid points per unit for continuous parameters."""

ENUMERATED_LEVELS = 20
"""Discrete numeric parameters with more levels than this are searched like continuous ones, then rounded."""


@dataclass(frozen=True)
class _Parameter:
    name: str
    distribution: BaseDistribution
    columns: slice

    @property
    def levels(self) -> int | None:
        """Number of values that the parameter can take; None for a continuous one."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return len(distribution.choices)
        if isinstance(distribution, IntDistribution):
            return (distribution.high - distribution.low) // distribution.step + 1
        assert isinstance(distribution, FloatDistribution)
        if distribution.step is None:
            return None
        return round((distribution.high - distribution.low) / distribution.step) + 1

    @property
    def categorical(self) -> bool:
        return isinstance(self.distribution, CategoricalDistribution)

    @property
    def searched_continuously(self) -> bool:
        levels = self.levels
        return not self.categorical and (levels is None or levels > ENUMERATED_LEVELS)

    @property
    def positions(self) -> Array:
        """Where the levels of a discrete numeric parameter lie in [0, 1]."""
        distribution = self.distribution
        assert isinstance(distribution, FloatDistribution | IntDistribution) and self.levels is not None
        step = distribution.step or 1
        return np.concatenate([self.encode(distribution.low + level * step) for level in range(self.levels)])

    def encode(self, value: Any) -> Array:
        return np.array(self.coordinates(value))

    def coordinates(self, value: Any) -> list[float]:
        """What ``encode`` makes an array of; thousands of trials are encoded for one proposal."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            block = [0.0] * len(distribution.choices)
            block[int(distribution.to_internal_repr(value))] = 1.0
            return block
        assert isinstance(distribution, (FloatDistribution, IntDistribution))
        low, high, value = float(distribution.low), float(distribution.high), float(value)
        if distribution.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return [(value - low) / (high - low) if high > low else 0.0]

    def decode(self, block: Array) -> Any:
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(np.argmax(block))]
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        unit = float(block[0])
        # The ends by name, since low + 1.0 * (high - low) need not be high.
        if unit <= 0.0:
            return distribution.low
        if unit >= 1.0:
            return distribution.high
        low, high = float(distribution.low), float(distribution.high)
        if distribution.log:
            value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low)))
        else:
            value = low + unit * (high - low)
        if isinstance(distribution, IntDistribution):
            steps = round((value - distribution.low) / distribution.step)
            return min(max(distribution.low + steps * distribution.step, distribution.low), distribution.high)
        if distribution.step is not None:
            value = low + round((value - low) / distribution.step) * distribution.step
        return min(max(float(f"{value:.10g}"), low), high)

    def snap(self, block: Array) -> Array:
        """The nearest representable points; ``n x columns``."""
        if self.categorical:
            snapped = np.zeros_like(block)
            snapped[np.arange(len(block)), np.argmax(block, axis=1)] = 1.0
            return snapped
        if self.levels is None:
            return np.asarray(np.round(np.clip(block, 0.0, 1.0) * GRID) / GRID)
        return np.stack([self.encode(self.decode(row)) for row in block]) if len(block) else block

    def from_uniform(self, uniform: Array) -> Array:
        """``n`` uniform numbers to ``n x columns``, every level of a discrete parameter equally likely."""
        levels = self.levels
        if levels is None:
            return self.snap(uniform[:, None])
        if isinstance(self.distribution, IntDistribution) and self.distribution.log:
            low, high = math.log(self.distribution.low - 0.5), math.log(self.distribution.high + 0.5)
            values = np.round(np.exp(low + uniform * (high - low)))
            values = np.clip(values, self.distribution.low, self.distribution.high)
            return np.stack([self.encode(int(value)) for value in values])
        index = np.minimum((uniform * levels).astype(int), levels - 1)
        if self.categorical:
            return np.asarray(np.eye(levels)[index])
        return np.asarray(index[:, None] / max(levels - 1, 1))


@dataclass(frozen=True)
class Condition:
    """A parameter is there only where ``parent`` has one of ``values``, and never where the parent is not."""

    parent: str
    values: frozenset[Any]

    def holds(self, params: Mapping[str, Any]) -> bool:
        return self.parent in params and params[self.parent] in self.values


class Encoder:
    """Maps parameter dictionaries of one search space to vectors in [0, 1]^d and back.

    A parameter under ``conditions`` may be missing where its condition does not hold; it is encoded as 0 then. Parents
    have conditions before their children.
    """

    def __init__(
        self, space: Mapping[str, BaseDistribution], conditions: Mapping[str, Condition] = MappingProxyType({})
    ) -> None:
        parameters, start = [], 0
        for name, distribution in space.items():
            width = len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1
            parameters.append(_Parameter(name, distribution, slice(start, start + width)))
            start += width
        self.space = dict(space)
        self.conditions = dict(conditions)
        self._parameters = tuple(parameters)
        self.dimension = start
        """Number of columns, d."""
        self.parameters = len(parameters)
        """Number of parameters; smaller than ``dimension`` when some are categorical."""
        self.continuous = np.zeros(start, dtype=bool)
        """Which columns an optimiser may move freely (``d``)."""
        for parameter in parameters:
            self.continuous[parameter.columns] = parameter.searched_continuously

    @property
    def numeric_columns(self) -> dict[str, tuple[int, float, float]]:
        """Column, low and high of every numeric parameter on a linear scale."""
        found = {}
        for parameter in self._parameters:
            distribution = parameter.distribution
            if isinstance(distribution, FloatDistribution | IntDistribution) and not distribution.log:
                found[parameter.name] = (parameter.columns.start, float(distribution.low), float(distribution.high))
        return found

    def choice_columns(self, name: str) -> dict[Any, int]:
        """The column of every choice of a categorical parameter; empty when there is no such parameter."""
        for parameter in self._parameters:
            if parameter.name == name and isinstance(parameter.distribution, CategoricalDistribution):
                return {choice: parameter.columns.start + i for i, choice in enumerate(parameter.distribution.choices)}
        return {}

    def masked(self, points: Array) -> Array:
        """``points`` (``n x d``) with 0 in the columns of parameters whose conditions do not hold there."""
        if not self.conditions:
            return points
        return np.where(self.is_masked(points), 0.0, points)

    def is_masked(self, points: Array) -> Mask:
        """Of every coordinate of ``points`` (``n x d``), whether its parameter's condition does not hold there."""
        parameters = {parameter.name: parameter for parameter in self._parameters}
        points, is_there = points.copy(), dict[str, Mask]()
        found = np.zeros(points.shape, dtype=bool)
        for name, condition in self.conditions.items():
            parent = parameters[condition.parent]
            allowed = np.stack([parent.encode(value) for value in condition.values])
            differences = np.abs(points[:, None, parent.columns] - allowed[None]).max(axis=2)
            is_there[name] = (differences < 1e-3).any(axis=1) & is_there.get(condition.parent, True)
            points[~is_there[name], parameters[name].columns] = 0.0
            found[~is_there[name], parameters[name].columns] = True
        return found

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Whether ``params`` has a value inside the current distribution for every parameter."""
        for parameter in self._parameters:
            if parameter.name not in params:
                condition = self.conditions.get(parameter.name)
                if condition is None or condition.holds(params):
                    return False
                continue
            try:
                internal = parameter.distribution.to_internal_repr(params[parameter.name])
            except ValueError:
                return False
            if not parameter.distribution._contains(internal):
                return False
        return True

    def encode(self, params: Mapping[str, Any]) -> Array:
        """A dictionary that the space ``contains`` as a vector (``d``)."""
        found: list[float] = []
        for parameter in self._parameters:
            if parameter.name in params:
                found.extend(parameter.coordinates(params[parameter.name]))
            else:
                found.extend([0.0] * (parameter.columns.stop - parameter.columns.start))
        return np.array(found)

    def decode(self, vector: Array) -> dict[str, Any]:
        """A vector (``d``) as plain Python numbers and choices; 0 and 1 give exactly the ends of the range."""
        return {parameter.name: parameter.decode(vector[parameter.columns]) for parameter in self._parameters}

    def snap(self, points: Array) -> Array:
        """The nearest representable points; ``n x d``."""
        return np.concatenate([parameter.snap(points[:, parameter.columns]) for parameter in self._parameters], axis=1)

    def from_uniform(self, uniform: Array) -> Array:
        """Uniform numbers in [0, 1) (``n x parameters``) as representable points (``n x d``)."""
        blocks = [parameter.from_uniform(uniform[:, i]) for i, parameter in enumerate(self._parameters)]
        return np.concatenate(blocks, axis=1)

    def neighbours(self, point: Array) -> Array:
        """Points (``k x d``) that differ from ``point`` in one discrete parameter: another choice, or one step."""
        found = []
        for parameter in self._parameters:
            if parameter.searched_continuously:
                continue
            levels = parameter.levels
            assert levels is not None
            block = point[parameter.columns]
            if parameter.categorical:
                others = [row for row in np.eye(levels) if not np.array_equal(row, block)]
            else:
                positions = parameter.positions
                here = int(np.argmin(np.abs(positions - block[0])))
                others = [positions[i : i + 1] for i in (here - 1, here + 1) if 0 <= i < levels]
            for other in others:
                neighbour = point.copy()
                neighbour[parameter.columns] = other
                found.append(neighbour)
        return np.array(found).reshape(len(found), len(point))
