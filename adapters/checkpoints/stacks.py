"""The stacks of layers that a checkpoint has: one in a decoder, two in an encoder-decoder, one more per tower."""

from __future__ import annotations

from mergefront.adapters.checkpoints.header import CheckpointHeader
from mergefront.adapters.checkpoints.names import is_prediction_layer
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import split_at_layer
from mergefront.optimizer.recipes.stacks import NAMES, stacks_of, texts_of

Layers = dict[int, dict[str, str]]
"""By the number of a layer: its tensors' names by what follows the number in them."""


def stacks(header: CheckpointHeader) -> dict[str, Layers]:
    """Every stack by what its tensors' names have before the number of the layer.

    Layers that predict tokens further ahead belong to none.
    """
    found: dict[str, Layers] = {}
    for name in header.tensors:
        parts = split_at_layer(name)
        if parts is not None and not is_prediction_layer(name, header.config):
            before, layer, after = parts
            found.setdefault(before, {}).setdefault(layer, {})[after] = name
    return found


def depths(header: CheckpointHeader) -> dict[str, int]:
    """How many layers each stack has, by the name that users know it by: language, encoder, decoder, vision, audio."""
    every = stacks(header)
    found: dict[str, int] = {}
    for before, stack in stacks_of(every).items():
        found[stack] = max(found.get(stack, 0), 1 + max(every[before]))
    return {stack: found[stack] for stack in NAMES if stack in found}


def text_stacks(header: CheckpointHeader) -> dict[str, Layers]:
    """The stacks that read or write text; all there are in a model that reads none."""
    every = stacks(header)
    named = stacks_of(every)
    of_text = texts_of(set(named.values()))
    return {before: layers for before, layers in every.items() if named[before] in of_text}


def layer_count(header: CheckpointHeader) -> int:
    """How many layers the deepest stack of text has."""
    return max((1 + max(layers) for layers in text_stacks(header).values()), default=0)


def text_stack(header: CheckpointHeader) -> tuple[str, Layers]:
    """The one stack of a model that reads and writes text. Raises ``UserError`` where that is none or several."""
    of_text = text_stacks(header)
    if len(of_text) != 1:
        named = ", ".join(name.rstrip(".") for name in of_text) or "none"
        raise UserError(
            f"{header.path}: layer_range needs a model with one stack of text layers, and this one has {named}; "
            "merge it whole, with models instead of slices"
        )
    return next(iter(of_text.items()))
