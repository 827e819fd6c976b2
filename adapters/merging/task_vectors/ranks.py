"""Which entries of a task vector are among the largest, exactly, without sorting per candidate.

"The k largest" is a pair (value, index): an entry is among them when its magnitude exceeds the
value, or equals it at an index not above the pair's. Ties therefore break by position, and a mask
with exactly k entries is one comparison per entry. The pair for any k comes from the order of the
magnitudes, sorted once per task vector, or from two histograms over the float's bits when the
task vector is seen only once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from mergefront.adapters.merging.task_vectors.task_vector import TaskVector

_ROWS_AT_ONCE = 1 << 19


class Rank(NamedTuple):
    """The k-th largest magnitude and its index; ties are ordered by index."""

    value: float
    position: int


EVERY = Rank(-1.0, -1)
NONE = Rank(float("inf"), -1)


def kept_count(density: float, size: int) -> int:
    """floor(density * size) entries are kept, but at least one when density is positive (mergekit 0.1.5)."""
    if density >= 1:
        return size
    return max(1, int(density * size)) if density > 0 and size else 0


def sort_magnitudes(delta: TaskVector) -> torch.Tensor:
    """Indices by descending magnitude, ties by ascending index (int32 or int64, n)."""
    size = delta.size
    if delta.device.type != "cpu" or size >= 1 << 32:
        order = torch.sort(delta.part(0, size).abs(), descending=True, stable=True).indices
        return order if delta.device.type == "cpu" else order.to(torch.int32)
    keys = torch.empty(size, dtype=torch.int32)
    for start, part in delta.stretches():
        keys[start : start + len(part)] = 0x7FFFFFFF - part.abs().contiguous().view(torch.int32)
    order = sorted_by_radix(keys) if _radix_is_quicker() else sorted_as_pairs(keys)
    return order.to(torch.int32) if size < 1 << 31 else order


def sorted_by_radix(keys: torch.Tensor) -> torch.Tensor:
    """Indices (int64, n) that sort int32 keys, ties by index: torch's radix sort."""
    return keys.sort(stable=True).indices


def sorted_as_pairs(keys: torch.Tensor) -> torch.Tensor:
    """The same (int32 where they fit) for keys that are not negative: numpy's sort of (key, index) in 64 bits."""
    pairs = np.empty(len(keys), dtype="<u8")
    halves = pairs.view("<u4").reshape(len(keys), 2)
    halves[:, 1] = keys.numpy()
    halves[:, 0] = np.arange(len(keys), dtype=np.uint32)
    pairs.sort()
    order = halves[:, 0].copy()
    return torch.from_numpy(order.view(np.int32) if len(keys) < 1 << 31 else order.astype(np.int64))


@functools.cache
def _radix_is_quicker() -> bool:
    """Tried once: numpy sorts with the processor's widest vectors, which is quick on AMD's Zen 5 and four times as slow
    as torch on Zen 4, where storing chosen lanes is microcode."""
    keys = torch.randint(1 << 31, (1 << 18,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    seconds = []
    for sort in (sorted_by_radix, sorted_as_pairs):
        begun = time.perf_counter()
        sort(keys)
        seconds.append(time.perf_counter() - begun)
    return seconds[0] < seconds[1]


def rank_in_order(order: torch.Tensor, delta: TaskVector, k: int) -> Rank:
    """The k-th largest magnitude (k from 1) of a sorted task vector."""
    index = int(order[k - 1])
    return Rank(abs(float(delta.part(index, index + 1))), index)


def select_rank(delta: TaskVector, k: int) -> Rank:
    """The k-th largest magnitude (k from 1) without sorting: three passes over the entries.

    The bits of a non-negative float order like the float, so the upper half's histogram finds the
    bin, the lower half's the value, and a last pass the index among equals.
    """
    bin_, k = _descend(_histogram(bits >> 16 for _, bits in _bits(delta)), k)
    low, k = _descend(_histogram(bits[(bits >> 16) == bin_] & 0xFFFF for _, bits in _bits(delta)), k)
    wanted = (bin_ << 16) | low
    value = float(torch.tensor([wanted], dtype=torch.int32).view(torch.float32))
    for start, bits in _bits(delta):
        equal = (bits == wanted).nonzero().flatten()
        if len(equal) >= k:
            return Rank(value, start + int(equal[k - 1]))
        k -= len(equal)
    raise AssertionError("the histograms and the entries disagree; the task vector changed while it was read")


def _bits(delta: TaskVector) -> Iterator[tuple[int, torch.Tensor]]:
    """The magnitudes' bits, stretch by stretch, where the task vector is."""
    for start, part in delta.stretches():
        yield start, part.abs().contiguous().view(torch.int32).to(torch.int64)


def _histogram(halves: Iterator[torch.Tensor]) -> torch.Tensor:
    """How often each number of 16 bits occurs, on the CPU."""
    counts = torch.bincount(next(halves), minlength=1 << 16)
    for part in halves:
        counts += torch.bincount(part, minlength=1 << 16)
    return counts.cpu()


def _descend(histogram: torch.Tensor, k: int) -> tuple[int, int]:
    """The bin, from the top, in which the k-th entry lies, and k counted within that bin."""
    from_top = histogram.flip(0).cumsum(0)
    place = int((from_top < k).sum())
    before = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, k - before


def ranks_in_rows(delta: TaskVector) -> torch.Tensor:
    """``row_ranks`` of a task vector that is read in stretches of rows, so that little of it is in memory at once."""
    shape, size = delta.shape, delta.size
    if len(shape) != 2 or size <= _ROWS_AT_ONCE:
        return row_ranks(delta.part(0, size).view(shape))
    rows = max(1, _ROWS_AT_ONCE // shape[1])
    ranks = torch.empty(size, dtype=rank_dtype(shape[1]), device=delta.device)
    for start in range(0, shape[0], rows):
        end = min(start + rows, shape[0])
        part = slice(start * shape[1], end * shape[1])
        ranks[part] = row_ranks(delta.part(part.start, part.stop).view(end - start, shape[1]))
    return ranks


def rank_dtype(row: int) -> torch.dtype:
    """The smallest integer type that holds a rank within a row of ``row`` entries."""
    return torch.int16 if row <= 1 << 15 else torch.int32


def row_ranks(delta: torch.Tensor) -> torch.Tensor:
    """Rank of every entry's magnitude within its row, from 0, ascending (flat; int16 where it fits).

    A vector is one row; of more than two dimensions the second is ranked, as in mergekit.
    """
    magnitudes = delta.abs() if delta.dim() > 1 else delta.abs().view(1, -1)
    order = magnitudes.argsort(dim=1, stable=True)
    counting = torch.arange(order.shape[1], device=delta.device).view(1, -1, *([1] * (order.dim() - 2)))
    ranks = torch.empty_like(order).scatter_(1, order, counting.expand_as(order))
    return ranks.to(rank_dtype(order.shape[1])).contiguous().view(-1)
