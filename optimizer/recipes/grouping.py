"""How coefficients vary over the depth of a model and over its kinds of module.

A coefficient's flat name says what it applies to; this is the name that Optuna and the dashboard show:

    lambda                          one number for the whole merge
    weight[maths]                   one number for the expert "maths"
    weight[maths, mlp]              for tensors whose name contains "mlp"
    weight[maths, block 2]          for the third block of layers
    weight[maths, mlp, block 2]     both
    weight[maths, vision block 2]   for the third block of the vision tower's layers (blocks per stack)
    weight[maths, vision]           for the whole tower, where it has no blocks
    weight[maths, knot 1]           second of several values, interpolated linearly over the depth
                                    (a mergekit gradient list)
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import ParameterValue
from mergefront.optimizer.recipes.stacks import NAMES, stack_of, texts_of

_LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d{1,9})\.")
_FLAT_NAME = re.compile(r"^(?P<parameter>[A-Za-z_]\w*)(?:\[(?P<inside>[^\[\]]+)\])?$")
_POSITION = re.compile(rf"^(?P<kind>(?:(?:{'|'.join(NAMES)}) )?block|knot) (?P<index>\d+)$")
_BEFORE_LAYERS = ("embed", "wte", "wpe", "shared.weight")
_AFTER_LAYERS = ("embed_out", "embedding_norm")
"""What is called after embeddings and is none: GPT-NeoX's head, LFM2's final norm."""


def layer_of(tensor_name: str) -> int | None:
    """The number of the transformer layer that a tensor belongs to, or None outside the layers."""
    parts = split_at_layer(tensor_name)
    return None if parts is None else parts[1]


def split_at_layer(tensor_name: str) -> tuple[str, int, str] | None:
    """A name taken apart: what is before the number of its layer, the number, what is after it; None outside layers."""
    found = _LAYER_NUMBER.search(tensor_name)
    return found and (tensor_name[: found.start(1)], int(found.group(1)), tensor_name[found.end(1) :])


def before_layers(tensor_name: str) -> bool:
    """Whether a tensor outside the layers comes before them (embeddings) rather than after."""
    return any(part in tensor_name for part in _BEFORE_LAYERS) and not any(
        part in tensor_name for part in _AFTER_LAYERS
    )


def stack_of_tensor(tensor_name: str, known: Collection[str]) -> str:
    """The stack that a tensor is of, in its layers or around them, among those that a model has."""
    of_half = "encoder" if before_layers(tensor_name) else "decoder"
    return stack_of((split_at_layer(tensor_name) or (tensor_name,))[0], known, of_half)


@dataclass(frozen=True)
class CoefficientName:
    """A flat coefficient name, taken apart.

    ``position`` is None, ("block" | "knot" | "vision block", index), or ("vision", 0) for the whole of a stack.
    """

    parameter: str
    expert: str | None = None
    module: str | None = None
    position: tuple[str, int] | None = None

    def __str__(self) -> str:
        inside = [part for part in (self.expert, self.module) if part is not None]
        if self.position is not None:
            kind, index = self.position
            inside.append(kind if kind in NAMES else f"{kind} {index}")
        return f"{self.parameter}[{', '.join(inside)}]" if inside else self.parameter

    @classmethod
    def parse(cls, name: str, experts: Iterable[str], split: Iterable[str] = ()) -> CoefficientName:
        """Read a flat name; raises ``UserError`` when it names no expert, module kind or position."""
        taken = _take_apart(name)
        if taken is None:
            raise UserError(
                f"coefficient name {name!r} is malformed; write it like weight[maths] or weight[maths, block 2]"
            )
        parameter, rest, position = taken
        expert = rest.pop(0) if rest and rest[0] in set(experts) else None
        module = rest.pop(0) if rest and rest[0] in set(split) else None
        if position is None and len(rest) == 1 and rest[0] in NAMES:
            position = (rest.pop(), 0)
        if rest:
            raise UserError(
                f"coefficient {name!r}: {rest[0]!r} is neither an expert ({', '.join(experts)}) nor a module kind "
                f"({', '.join(split) or 'none declared'})"
            )
        return cls(parameter, expert, module, position)

    @classmethod
    def guess(cls, name: str) -> CoefficientName:
        """Read a flat name where the experts are not known.

        The first part in brackets is an expert, the second a module kind (or a whole stack), the third a whole stack;
        a name of another form is a parameter.
        """
        parameter, parts, position = _take_apart(name) or (name, [], None)
        if len(parts) == 3 and position is None and parts[-1] in NAMES:
            position = (parts.pop(), 0)
        expert, module, *more = (*parts, None, None)
        return cls(name) if any(more) else cls(parameter, expert, module, position)


def parameter_of(name: str) -> str:
    """The parameter that a flat name is about."""
    return CoefficientName.guess(name).parameter


def _take_apart(name: str) -> tuple[str, list[str], tuple[str, int] | None] | None:
    """Parameter, the parts in brackets without the position, and the position; None for a name of another form."""
    matched = _FLAT_NAME.match(name)
    if matched is None:
        return None
    parts = [part.strip() for part in matched["inside"].split(",")] if matched["inside"] else []
    at = _POSITION.match(parts[-1]) if parts else None
    return matched["parameter"], parts[:-1] if at else parts, (at["kind"], int(at["index"])) if at else None


@dataclass(frozen=True)
class Stack:
    """Layers that are numbered from 0 on: a decoder, an encoder, a tower.

    ``starts`` has the first layers of its own blocks, if it has such.
    """

    name: str
    layers: int
    starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Grouping:
    """Blocks of consecutive layers and kinds of module that have coefficients of their own.

    ``starts`` holds the first layer of every block, beginning with 0 and ascending (empty: no
    blocks); ``split`` holds substrings of tensor names, of which the first that matches decides;
    ``layers`` is the number of transformer layers (0 when it is not known). Tensors before the
    layers (embeddings) follow the first block, those after them (final norm, head) the last one,
    as in mergekit's slices; for gradients all tensors outside the layers take the first value.
    ``stacks`` has the model's stacks where some of them read no text: the layers of such a tower are
    not counted, all of it comes before the layers. Empty: every stack's layers are counted.
    With ``stacks`` and without ``starts`` every stack has blocks of its own, or one coefficient.
    """

    layers: int = 0
    starts: tuple[int, ...] = ()
    split: tuple[str, ...] = ()
    stacks: tuple[Stack, ...] = ()

    def __post_init__(self) -> None:
        if self.starts:
            ascending = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
            if self.starts[0] != 0 or not ascending or self.starts[-1] >= self.layers:
                raise UserError(
                    f"block starts {list(self.starts)} must begin with 0, ascend and stay below the number of layers "
                    f"({self.layers})"
                )
        if len(set(self.split)) != len(self.split):
            raise UserError(f"module kinds {list(self.split)} name one kind twice")

    @classmethod
    def equal_blocks(
        cls, blocks: int, layers: int, split: tuple[str, ...] = (), stacks: tuple[Stack, ...] = ()
    ) -> Grouping:
        """``blocks`` blocks of equal depth (the first ones take what is left over)."""
        return cls(layers, equal_starts(blocks, layers), split, stacks)

    @classmethod
    def of_importance(cls, blocks: int, importance: Sequence[float], split: tuple[str, ...] = ()) -> Grouping:
        """``blocks`` blocks that share the layers' importance evenly (see ``blocks_by_importance``)."""
        return cls(len(importance), blocks_by_importance(importance, blocks), split)

    def in_tower(self, tensor_name: str) -> bool:
        """Whether a tensor is of a stack that is not counted, or of the projector behind it."""
        known = [stack.name for stack in self.stacks]
        return bool(known) and stack_of_tensor(tensor_name, known) not in texts_of(known)

    def position_of(self, tensor_name: str) -> tuple[str, int] | None:
        """The block or the stack whose coefficients a tensor has; None where they do not vary over the depth."""
        if self.starts:
            return "block", self.block_of(tensor_name)
        if not self.stacks:
            return None
        by_name = {stack.name: stack for stack in self.stacks}
        stack = by_name[stack_of_tensor(tensor_name, list(by_name))]
        if not stack.starts:
            return stack.name, 0
        layer = layer_of(tensor_name)
        if layer is None:
            return f"{stack.name} block", 0 if before_layers(tensor_name) else len(stack.starts) - 1
        return f"{stack.name} block", _last_start(stack.starts, layer)

    def positions(self) -> list[tuple[str, int]]:
        """Every block or stack that has coefficients of its own."""
        if self.starts:
            return [("block", i) for i in range(len(self.starts))]
        found = []
        for stack in self.stacks:
            found += [(f"{stack.name} block", i) for i in range(len(stack.starts))] or [(stack.name, 0)]
        return found

    def layer_of(self, tensor_name: str) -> int | None:
        """The number of the counted layer that a tensor belongs to, or None outside those."""
        return None if self.in_tower(tensor_name) else layer_of(tensor_name)

    def block_of(self, tensor_name: str) -> int:
        """The block that a tensor belongs to."""
        layer = self.layer_of(tensor_name)
        if layer is None:
            return 0 if self.in_tower(tensor_name) or before_layers(tensor_name) else len(self.starts) - 1
        return _last_start(self.starts, layer)

    def module_of(self, tensor_name: str) -> str | None:
        """The first kind of ``split`` that the tensor's name contains, or None."""
        return next((part for part in self.split if part in tensor_name), None)

    def scopes(self) -> list[tuple[str | None, tuple[str, int] | None]]:
        """Every (module kind, block) that has a coefficient of its own, in reading order."""
        blocks: list[tuple[str, int] | None] = [*self.positions()] or [None]
        kinds: list[str | None] = [*self.split, None] if self.split else [None]
        return [(kind, block) for kind in kinds for block in blocks]

    def resolve(
        self, params: Mapping[str, ParameterValue], parameter: str, expert: str | None, tensor_name: str
    ) -> ParameterValue | None:
        """The value that ``parameter`` has for one expert and one tensor, or None when it is not set.

        The most specific name wins: module kind and position before either alone, the expert's own
        before the common one.
        """
        module, position = self.module_of(tensor_name), self.position_of(tensor_name)
        for owner in (expert, None) if expert is not None else (None,):
            for kind in (module, None) if module is not None else (None,):
                knots = knots_of(params, parameter, owner, kind)
                if knots:
                    return interpolate(knots, self.layer_of(tensor_name), self.layers)
                if position is not None:
                    name = str(CoefficientName(parameter, owner, kind, position))
                    if name in params:
                        return params[name]
                name = str(CoefficientName(parameter, owner, kind))
                if name in params:
                    return params[name]
        return None


def equal_starts(blocks: int, layers: int) -> tuple[int, ...]:
    """First layers of ``blocks`` blocks of equal depth; the first ones take what is left over. Raises ``UserError``."""
    if not 1 <= blocks <= layers:
        raise UserError(f"blocks is {blocks}; the model has {layers} layers, so it must lie in [1, {layers}]")
    size, left_over = divmod(layers, blocks)
    return tuple(size * i + min(i, left_over) for i in range(blocks))


def _last_start(starts: Sequence[int], layer: int) -> int:
    return sum(1 for start in starts if start <= layer) - 1


def blocks_by_importance(importance: Sequence[float], blocks: int) -> tuple[int, ...]:
    """First layers of ``blocks`` blocks of consecutive layers, between which importance is shared most evenly.

    ``importance`` has one number of at least 0 per layer (how far the experts moved it, say); the sum of
    squares of the blocks' sums is minimal, by dynamic programming in O(blocks * layers^2), and of equally
    good divisions the one whose first blocks are longest is taken. Raises ``UserError``.
    """
    layers = len(importance)
    if not 1 <= blocks <= layers:
        raise UserError(f"blocks is {blocks}; the model has {layers} layers, so it must lie in [1, {layers}]")
    if not all(math.isfinite(value) and value >= 0 for value in importance):
        raise UserError("the importance of a layer must be a finite number of at least 0")
    # Exact sums, so that equally good divisions are seen to be equal.
    whole = [Fraction(value) for value in importance]
    if not any(whole):
        whole = [Fraction(1)] * layers
    sums = [Fraction(0), *accumulate(whole)]
    # best[first]: least cost of the layers from ``first`` on in the blocks that are left, and where the first one ends
    best = {first: ((sums[layers] - sums[first]) ** 2, layers) for first in range(layers)}
    chosen = [best]
    for left in range(2, blocks + 1):
        rest = chosen[-1]
        best = {}
        for first in range(layers - left + 1):
            ends = range(first + 1, layers - left + 2)
            # Among equals the longest first block wins.
            cost, negative_end = min(((sums[end] - sums[first]) ** 2 + rest[end][0], -end) for end in ends)
            best[first] = (cost, -negative_end)
        chosen.append(best)
    starts = [0]
    for options in reversed(chosen[1:]):
        starts.append(options[starts[-1]][1])
    return tuple(starts)


def knots_of(
    params: Mapping[str, ParameterValue], parameter: str, expert: str | None, module: str | None
) -> list[float]:
    """The gradient values of one coefficient, first to last; empty when it is no gradient."""
    values: list[float] = []
    while (name := str(CoefficientName(parameter, expert, module, ("knot", len(values))))) in params:
        values.append(float(params[name]))
    return values


def interpolate(knots: list[float], layer: int | None, layers: int) -> float:
    """Value of a gradient list at a layer: linear in depth t = layer / (layers - 1), as in mergekit.

    Raises ``UserError`` when the number of layers is not known.
    """
    if len(knots) == 1 or layer is None or layers == 1:
        return knots[0]
    if layers < 1:
        raise UserError("a gradient needs the model's number of layers (Grouping(layers=...))")
    scaled = layer / (layers - 1) * (len(knots) - 1)
    left = min(int(scaled), len(knots) - 2)
    fraction = scaled - left
    return (1 - fraction) * knots[left] + fraction * knots[left + 1]
