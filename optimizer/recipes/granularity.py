"""``granularity`` as a user writes it: how finely the coefficients of a space follow the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping, Stack, equal_starts
from mergefront.optimizer.recipes.stacks import NAMES, texts_of


def grouping_of(granularity: Any, split: tuple[str, ...], depths: int | Mapping[str, int]) -> Grouping:
    """What ``granularity`` and ``split`` of ``MergeSpace`` say, for a model of that many layers, or of that many in
    every stack by its name. Raises ``UserError``."""
    if granularity == "global":
        return Grouping(0, (), split)
    layers, stacks = _counted(depths)
    if granularity == "layers" or isinstance(granularity, Mapping):
        if layers < 1:
            raise UserError(f"{granularity!r} needs the model's number of layers (layers=...)")
        if granularity == "layers":
            return Grouping.equal_blocks(layers, layers, split, stacks)
        if granularity.get("boundaries", "depth") != "depth":
            raise UserError(
                f"boundaries {granularity['boundaries']!r} must be depth or importance; importance is read off the "
                "weights, so without a study file of a local backend give {starts: [0, ...]} (blocks_by_importance)"
            )
        if set(granularity) - {"boundaries"} == {"blocks"} and type(granularity["blocks"]) is int:
            return Grouping.equal_blocks(granularity["blocks"], layers, split, stacks)
        if set(granularity) - {"boundaries"} == {"blocks"} and isinstance(granularity["blocks"], Mapping):
            return Grouping(layers, (), split, _stacks_with_blocks(granularity["blocks"], depths))
        if set(granularity) == {"starts"} and isinstance(granularity["starts"], (list, tuple)):
            return Grouping(layers, tuple(granularity["starts"]), split, stacks)
    raise UserError(
        f"{granularity!r} must be global, layers, {{blocks: N}}, {{blocks: N, boundaries: importance}}, "
        "{blocks: {language: N, vision: 0}} or {starts: [0, ...]}"
    )


def _stacks_with_blocks(blocks: Mapping[str, Any], depths: int | Mapping[str, int]) -> tuple[Stack, ...]:
    """Every stack of the model with its own blocks. Raises ``UserError``."""
    if isinstance(depths, int):
        raise UserError("blocks per stack need the layers of every stack (layers={'language': 28, 'vision': 32})")
    there = ", ".join(f"{name} ({layers} layers)" for name, layers in depths.items())
    for name, number in blocks.items():
        if name not in depths:
            raise UserError(f"blocks: the model has no stack {name!r}; it has {there}")
        if type(number) is not int or not 0 <= number <= depths[name]:
            raise UserError(
                f"blocks: {name} is {number!r}; it must be a whole number from 0 (one coefficient) to {depths[name]} "
                "(one per layer)"
            )
    return tuple(
        Stack(name, depths[name], equal_starts(blocks[name], depths[name]) if blocks.get(name) else ())
        for name in NAMES
        if name in depths
    )


def _counted(depths: int | Mapping[str, int]) -> tuple[int, tuple[Stack, ...]]:
    """How many layers the stacks of text have, and every stack if some of them read no text."""
    if isinstance(depths, int):
        return depths, ()
    of_text = texts_of(depths)
    has_towers = len(of_text) < len(depths)
    stacks = tuple(Stack(name, depths[name]) for name in NAMES if name in depths) if has_towers else ()
    return max((depths[name] for name in of_text), default=0), stacks
