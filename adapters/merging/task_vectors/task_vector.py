"""One expert's task vector of one tensor, made in float32 a stretch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mergefront.adapters.merging.offload.factored import FactoredDelta
from mergefront.adapters.merging.offload.memory import stretch
from mergefront.adapters.merging.sources import Entry


class TaskVector:
    """What an expert adds to the base's tensor: its ``entry`` (of any shape, n entries) minus the base's, or a product
    of factors; ``tensor`` and ``base`` (n) are flat, ``factors`` in float32."""

    def __init__(self, entry: Entry | FactoredDelta, base: torch.Tensor) -> None:
        self.factors = entry.in_float32() if isinstance(entry, FactoredDelta) else None
        self.tensor = torch.empty(0) if isinstance(entry, FactoredDelta) else entry.tensor.view(-1)
        self.is_delta = isinstance(entry, FactoredDelta) or entry.is_delta
        self.shape = base.shape
        self.size = base.numel()
        self.device = base.device
        self.base = base.view(-1)

    def part(self, start: int, end: int) -> torch.Tensor:
        """The entries from ``start`` to before ``end`` in float32."""
        if self.factors is not None:
            return self.factors.part(start, end)
        part = self.tensor[start:end].float()
        return part if self.is_delta else part - self.base[start:end].float()

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The entries of these indices (int64, m) in float32; of a product of factors, about."""
        if self.factors is not None:
            return self.factors.at(index)
        # Not by tensor[index], which wakes torch's threads for a few thousand entries.
        part = self.tensor.index_select(0, index).float()
        return part if self.is_delta else part - self.base.index_select(0, index).float()

    def stretches(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Index of the first entry and entries of every stretch that is worked on at once (``memory.stretch``)."""
        step = stretch(self.device)
        for start in range(0, self.size, step):
            yield start, self.part(start, min(start + step, self.size))
