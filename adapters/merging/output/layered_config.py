"""config.json of a model whose layers were dropped, repeated or taken from several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.stacks import is_tower

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_NUMBERS_OF_LAYERS = (
    "mlp_only_layers", "full_attn_idxs", "attn_layer_indices", "moe_layers", "moe_layer_indices",
    "cross_attention_layers",
)  # fmt: skip
"""Keys that list the layers of one kind by their numbers."""
_ONE_PER_LAYER = ("layer", "block", "pattern", "window", "intermediate_size", "num_attention_heads", "num_key_value")
"""Words in keys that hold one value per layer when they are lists as long as the model is deep."""


def with_layers(
    config: Mapping[str, Any], depth: int, layers: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """The configuration of a model of ``depth`` layers, for a result that has ``layers`` instead.

    ``layers`` has, per layer of the result, the configuration of the model that it comes from and its number there.
    Depth, lists of one value per layer and lists of layers' numbers follow, in nested configurations of text alike; a
    tower's stay. Raises ``UserError`` where a source's configuration does not say what the first one says per layer.
    """
    counted = any(config.get(key) == depth for key in _COUNTS)
    made: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = [(_mapping(source.get(key)), number) for source, number in layers]
            made[key] = value if is_tower(key) else with_layers(value, depth, inner)
        elif counted and key in _COUNTS and value == depth:
            made[key] = len(layers)
        elif counted and key in _NUMBERS_OF_LAYERS and isinstance(value, list):
            made[key] = [at for at, (source, number) in enumerate(layers) if number in (source.get(key) or ())]
        elif (
            counted and isinstance(value, list) and len(value) == depth and any(word in key for word in _ONE_PER_LAYER)
        ):
            made[key] = [_value(source, key, number) for source, number in layers]
        else:
            made[key] = value
    return made


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _value(config: Mapping[str, Any], key: str, layer: int) -> Any:
    values = config.get(key)
    if not isinstance(values, list) or layer >= len(values):
        raise UserError(f"layer_range: a source's config.json has no {key} for its layer {layer}, and another's has")
    return values[layer]
