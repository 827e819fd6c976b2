"""Which entries of a task vector are among the largest, exactly, without an order of its entries.

"The k largest" is a pair (value, index): an entry is among them when its magnitude exceeds the
value, or equals it at an index not above the pair's. Ties therefore break by position, and a mask
with exactly k entries is one comparison per entry. Magnitude and index in one number are an entry's
key: the larger, the earlier among the largest. A table has the keys of a few thousand entries and, of
each, how many entries come no later, counted in one pass. The k-th largest then lies in a bracket of a
few hundred entries between two of them, and whoever reads the task vector next finds it there.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from mergefront.adapters.merging.task_vectors.task_vector import TaskVector

_ROWS_AT_ONCE = 1 << 19
_INSIDE, _INSIDE_FACTORED, _SPLITTERS = 128, 512, 1 << 14
"""Entries in a bracket, fewer of one whose entries are held than of a product of factors, beside which tables are
large; and brackets of a large task vector, which takes 12 bytes for each."""
_DRAWN = 2
"""Entries that are drawn for a splitter: brackets are the more alike, the more are drawn."""
_ONE, _POSITIONS = 1 << 30, 1 << 33
_LAST, _BEFORE_ALL = -(1 << 63), (1 << 63) - 1
"""Keys below which no entry is, and above all of them."""

Keys = np.ndarray[tuple[int], np.dtype[np.int64]]
Count = Callable[[TaskVector, Keys], Keys]
"""Of a task vector and keys (n, ascending): how many entries are below the first, ..., from the last on (n + 1)."""


class Rank(NamedTuple):
    """The k-th largest magnitude and its index; ties are ordered by index."""

    value: float
    position: int

    @classmethod
    def of_key(cls, key: int) -> Rank:
        """The entry of a key. A key is a magnitude's bits, less 2^30, times 2^33, plus 2^33 - 1 - index."""
        bits, behind = divmod(key, _POSITIONS)
        return cls(struct.unpack("f", struct.pack("I", bits + _ONE))[0], _POSITIONS - 1 - behind)


EVERY = Rank(-1.0, -1)
NONE = Rank(float("inf"), -1)


class Bracket(NamedTuple):
    """``inside`` entries have keys from ``lower`` to below ``upper``; the ``wanted``-th largest (from 1) is meant."""

    lower: int
    upper: int
    inside: int
    wanted: int

    @property
    def guess(self) -> Rank:
        """Near the entry that is meant, by its place between the ends."""
        return Rank.of_key(self.upper + (self.lower - self.upper) * self.wanted // self.inside)


class RankTable:
    """Where the k-th largest magnitude of a task vector (at most 2^33 entries) lies, for any k below their number."""

    def __init__(self, delta: TaskVector, count: Count) -> None:
        splitters = _splitters(delta)
        counts = count(delta, splitters)[::-1].cumsum() if len(splitters) else np.array([delta.size])
        self._keys = np.concatenate([splitters[::-1], [_LAST]])
        self._ranks = counts.astype(np.uint32 if delta.size < 1 << 32 else np.int64)

    @staticmethod
    def bytes_of(size: int, is_factored: bool) -> int:
        """Bytes of the table of a task vector of ``size`` entries (below 2^32)."""
        return 12 * _brackets(size, is_factored)

    def find(self, k: int) -> tuple[Rank, Bracket | None]:
        """The k-th largest (k from 1), or a guess and the bracket in which it is."""
        place = bisect_left(self._ranks, k)
        rank, key = int(self._ranks[place]), int(self._keys[place])
        if rank == k and key != _LAST:
            return Rank.of_key(key), None
        before, upper = (int(self._ranks[place - 1]), int(self._keys[place - 1])) if place else (0, _BEFORE_ALL)
        bracket = Bracket(key, upper, rank - before, k - before)
        return bracket.guess, bracket


def _brackets(size: int, is_factored: bool) -> int:
    return min(size // (_INSIDE_FACTORED if is_factored else _INSIDE), _SPLITTERS)


def _splitters(delta: TaskVector) -> Keys:
    """Keys of entries (ascending) that divide a task vector into about equal parts: of a sample in order."""
    number = _brackets(delta.size, delta.factors is not None)
    drawn = np.random.default_rng(0).integers(0, delta.size, _DRAWN * number)
    index = torch.from_numpy(drawn).to(delta.device)
    sample: Keys = keys_of(magnitude_bits(delta.at(index)), index).cpu().numpy()
    sample.sort()
    return np.ascontiguousarray(sample[_DRAWN - 1 :: _DRAWN])


def magnitude_bits(entries: torch.Tensor) -> torch.Tensor:
    """Of float32 entries, as int32: the bits of a non-negative float order like the float."""
    return entries.abs().contiguous().view(torch.int32)


def keys_of(bits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Keys (int64) of entries by their magnitudes' bits and their indices."""
    return (bits.to(torch.int64) - _ONE) * _POSITIONS + (_POSITIONS - 1 - index)


def count_entries(delta: TaskVector, keys: Keys) -> Keys:
    """``Count`` by torch's operations."""
    splitters = torch.from_numpy(keys).to(delta.device)
    counts = torch.zeros(len(keys) + 1, dtype=torch.int64, device=delta.device)
    for start, part in delta.stretches():
        index = torch.arange(start, start + len(part), device=delta.device)
        place = torch.searchsorted(splitters, keys_of(magnitude_bits(part), index), right=True)
        counts += torch.bincount(place, minlength=len(counts))
    return counts.cpu().numpy()


def select_rank(delta: TaskVector, bracket: Bracket) -> Rank:
    """The entry that a bracket means, found in one pass over the task vector."""
    found = []
    low, high = bracket.lower // _POSITIONS + _ONE, bracket.upper // _POSITIONS + _ONE
    for start, part in delta.stretches():
        bits = magnitude_bits(part)
        near = ((bits >= low) & (bits <= high)).nonzero().flatten()
        keys = keys_of(bits[near], start + near)
        found.append(keys[(keys >= bracket.lower) & (keys < bracket.upper)])
    inside = torch.cat(found)
    if len(inside) != bracket.inside:
        raise AssertionError("a task vector has changed since its entries were counted")
    return Rank.of_key(int(inside.sort(descending=True).values[bracket.wanted - 1]))


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
