"""One expert's task vector of one tensor, made in float32 a stretch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mergefront.adapters.merging.offload.memory import stretch
from mergefront.adapters.merging.sources import Entry


class TaskVector:
    """An expert's ``entry`` (of any shape, n entries) minus the base's tensor; ``tensor`` and ``base`` (n) are
    flat."""

    def __init__(self, entry: Entry, base: torch.Tensor) -> None:
        self.tensor = entry.tensor.view(-1)
        self.is_delta = entry.is_delta
        self.shape = entry.tensor.shape
        self.size = self.tensor.numel()
        self.device = self.tensor.device
        self.base = base.view(-1)

    def part(self, start: int, end: int) -> torch.Tensor:
        """The entries from ``start`` to before ``end`` in float32."""
        part = self.tensor[start:end].float()
        return part if self.is_delta else part - self.base[start:end].float()

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """The entries of these indices (int64, m) in float32."""
        # Not by tensor[index], which wakes torch's threads for a few thousand entries.
        part = self.tensor.index_select(0, index).float()
        return part if self.is_delta else part - self.base.index_select(0, index).float()

    def stretches(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Index of the first entry and entries of every stretch that is worked on at once (``memory.stretch``)."""
        step = stretch(self.device)
        for start in range(0, self.size, step):
            yield start, self.part(start, min(start + step, self.size))
