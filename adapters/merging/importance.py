"""How far the experts moved every layer: what blocks of layers are bounded by when depth alone will not do."""

from __future__ import annotations

from collections.abc import Mapping

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.adapters.checkpoints.stacks import layer_count
from mergefront.adapters.merging.sources import ExpertSource, Source, header_of, open_source
from mergefront.optimizer.recipes.grouping import layer_of


def layer_importance(base: Source, experts: Mapping[str, Source]) -> list[float]:
    """One number per transformer layer, summing to 1: its share of |expert - base|^2, the mean over experts.

    Every expert counts the same, however far it went; one that changes no layer counts nothing. Tensors
    are read one at a time. Raises ``UserError`` for experts that do not fit the base.
    """
    origin = open_source(base)
    layers = layer_count(header_of(origin, "base model"))
    totals = [0.0] * layers
    for name, source in experts.items():
        expert = ExpertSource(name, open_source(source), origin, (EVERYTHING,))
        own = [0.0] * layers
        for tensor_name in origin:
            layer = layer_of(tensor_name)
            entry = None if layer is None else expert.entry(tensor_name)
            if entry is None or layer is None or layer >= layers or not entry.tensor.is_floating_point():
                continue
            delta = entry.tensor.float()
            if not entry.is_delta:
                delta = delta - origin[tensor_name].float()
            own[layer] += float(delta.square().sum())
        moved = sum(own)
        if moved > 0:
            totals = [total + value / moved for total, value in zip(totals, own, strict=True)]
    whole = sum(totals)
    return [total / whole for total in totals] if whole > 0 else [1 / layers] * layers
