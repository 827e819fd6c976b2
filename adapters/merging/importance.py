"""How far the experts moved every layer: what blocks of layers are bounded by when depth alone will not do."""

from __future__ import annotations

from collections.abc import Mapping

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.adapters.checkpoints.stacks import layer_count, text_stacks
from mergefront.adapters.merging.sources import ExpertSource, Source, header_of, open_source


def layer_importance(base: Source, experts: Mapping[str, Source]) -> list[float]:
    """One number per transformer layer, summing to 1: its share of |expert - base|^2, the mean over experts.

    Every expert counts the same, however far it went; one that changes no layer counts nothing. Tensors
    are read one at a time. Raises ``UserError`` for experts that do not fit the base.
    """
    origin = open_source(base)
    header = header_of(origin, "base model")
    layers = layer_count(header)
    inside = [(name, at) for stack in text_stacks(header).values() for at, of in stack.items() for name in of.values()]
    totals = [0.0] * layers
    for name, source in experts.items():
        expert = ExpertSource(name, open_source(source), origin, (EVERYTHING,))
        own = [0.0] * layers
        for tensor_name, layer in inside:
            entry = expert.entry(tensor_name)
            if entry is None or not entry.tensor.is_floating_point():
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
