"""Key-value caches of transformers, and joining the rows of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad


def takes_padding(model: Any) -> bool:
    """Whether a mask hides padding from all that the model keeps of what it has read.

    It does from keys and values, whole or in a sliding window; a recurrent or convolved state takes it in, and
    models that make a cache of their own are not known well enough. A cache on several accelerators is none whose rows
    are chosen and joined here.
    """
    from transformers.cache_utils import DummyLayer, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if len(set(getattr(model, "hf_device_map", {}).values()) - {"cpu", "disk"}) > 1:
        return False
    known = {DynamicLayer, DynamicSlidingWindowLayer, DummyLayer}
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return not getattr(model, "_is_stateful", False) and layers <= known


def is_plain(cache: Any) -> bool:
    """Whether a cache holds plain keys and values of every position: no sliding window, no recurrent state.

    Only then a mask over all positions can hide padding that stands before or between what was read.
    """
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers or ())


def keeps_every_position(cache: Any, length: int) -> bool:
    """Whether a cache of keys and values has not begun to forget after ``length`` positions.

    Then positions in the middle may be hidden by a mask: no window counts them.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    layers = getattr(cache, "layers", None)
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and length < layer.sliding_window)
        for layer in layers or ()
    )


def joined(caches: Sequence[Any]) -> Any:
    """One plain cache of the rows of several, in their order; shorter ones are padded on the left, under a mask of 0.

    The caches are used up.
    """
    first = caches[0]
    longest = max(cache.get_seq_length() for cache in caches)
    for place, layer in enumerate(first.layers):
        for name in ("keys", "values"):
            parts = [getattr(cache.layers[place], name) for cache in caches]
            setattr(layer, name, torch.cat([pad(part, (0, 0, longest - part.shape[-2], 0)) for part in parts]))
        for cache in caches[1:]:
            cache.layers[place].reset()
    return first


def left_padded(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mask of joined caches: those of the parts (``rows x length``), padded with 0 on the left."""
    longest = max(mask.shape[1] for mask in masks)
    return torch.cat([pad(mask, (longest - mask.shape[1], 0)) for mask in masks])
