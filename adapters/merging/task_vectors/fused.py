"""Many tensors' merges in one call of the fused kernel (fused_merge.c), on all threads that torch has.

A batch is a table: one row per tensor, one per expert and tensor, one per bracket of a rank, and the pieces into which
the tensors are cut so that threads share the work evenly. The structures below are those of the C source.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mergefront.adapters.merging.offload.factored import FactoredDelta
from mergefront.adapters.merging.task_vectors.c_kernel import MergeKernel, SharedWork
from mergefront.adapters.merging.task_vectors.ranks import Bracket, Count, Keys, count_entries
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.adapters.merging.task_vectors.torch_kernel import Mix, Term

_MODES = {"all": 0, "largest": 1, "window": 2, "random": 3, "ranked": 4}
_FACTORS = np.dtype(
    [("left", "u8"), ("right", "u8"), ("rows", "i8"), ("columns", "i8"), ("rank", "i4"), ("scaling", "f4")]
)
_TERM = np.dtype(
    [
        ("entries", "u8"), ("row_ranks", "u8"), ("factors", _FACTORS),
        ("least_position", "i8"), ("above_position", "i8"),
        ("dtype", "i4"), ("is_delta", "i4"), ("mode", "i4"), ("rank_bytes", "i4"),
        ("factor", "f4"), ("weight", "f4"), ("least_value", "f4"), ("above_value", "f4"), ("start", "f4"),
        ("slope", "f4"), ("key_1", "i4"), ("key_2", "i4"), ("threshold", "i4"),
        ("least_bracket", "i4"), ("above_bracket", "i4"), ("unused", "i4"),
    ]
)  # fmt: skip
_TENSOR = np.dtype(
    [
        ("base", "u8"), ("out", "u8"), ("base_dtype", "i4"), ("out_dtype", "i4"), ("first_term", "i4"), ("terms", "i4"),
        ("consensus", "i4"), ("normalize", "i4"), ("scale", "f4"), ("divisor", "f4"),
        ("kept_dtype", "i4"), ("bracketed", "i4"), ("factored", "i4"), ("unused", "i4"),
        ("size", "i8"), ("first_piece", "i8"),
    ]
)  # fmt: skip
_PIECE = np.dtype([("tensor", "i8"), ("start", "i8"), ("end", "i8"), ("norm", "f8")])
_BRACKET = np.dtype(
    [("lower", "i8"), ("upper", "i8"), ("inside", "i8"), ("wanted", "i8"), ("first", "i8"), ("found", "i8")]
)
_BATCH = np.dtype(
    [
        ("tensors", "u8"), ("terms", "u8"), ("pieces", "u8"), ("brackets", "u8"), ("keys", "u8"), ("norms", "u8"),
        ("tensor_count", "i8"), ("piece_count", "i8"), ("most_terms", "i8"), ("most_factors", "i8"),
    ]
)  # fmt: skip
_COUNTING = np.dtype(
    [
        ("entries", "u8"), ("base", "u8"), ("factors", _FACTORS), ("splitters", "u8"), ("counts", "u8"), ("size", "i8"),
        ("dtype", "i4"), ("base_dtype", "i4"), ("is_delta", "i4"), ("number", "i4"),
    ]
)  # fmt: skip
_EXPANSION = np.dtype([("factors", _FACTORS), ("out", "u8"), ("size", "i8")])
_NO_FACTORS = (0, 0, 0, 0, 0, 0.0)
_MADE_AT_ONCE = 1 << 25
"""Bytes of factors in float32 that wait for a batch at most."""
_PIECE_ENTRIES, _BLOCKS = 1 << 17, 1 << 8
"""Entries, and blocks of entries, of a piece."""
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _dtype(tensor: torch.Tensor) -> int | None:
    """The kernel's number for a tensor's dtype, or None for one that it does not have, or that is not the CPU's."""
    return _DTYPES.get(tensor.dtype) if tensor.device.type == "cpu" else None


class PendingNorm:
    """The L1 norm of what a merge adds to one tensor, known (``float(norm)``) once its batch has run.

    ``rounded`` says that the batch itself drops the digits that the merge does not keep.
    """

    def __init__(self, rounded: bool) -> None:
        self.value = float("nan")
        self.rounded = rounded

    def __float__(self) -> float:
        return self.value


class FusedBatch:
    """Merges of tensors that are made together by ``run``, or earlier where much was made for them.

    Without a kernel the batch takes none.
    """

    def __init__(self, kernel: MergeKernel | None) -> None:
        self._kernel = kernel
        self._tensors: list[tuple[Any, ...]] = []
        self._terms: list[tuple[Any, ...]] = []
        self._brackets: list[tuple[int, ...]] = []
        self._keys = 0
        self._pieces = 0
        self._made = 0
        self._norms: list[PendingNorm] = []
        self._outs: list[torch.Tensor] = []
        self._held: list[object] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, mix: Mix, base: torch.Tensor, out: torch.Tensor, kept: torch.dtype | None) -> PendingNorm | None:
        """Put one tensor into the batch; ``base`` and ``out`` are contiguous and of equal sizes.

        A float32 ``out`` gets the digits that the dtype ``kept`` has.
        None when the kernel cannot merge it: there is no kernel, or it does not have a dtype.
        """
        terms = mix.terms
        tensors = (base, out, *(term.tensor for term in terms))
        if self._kernel is None or any(_dtype(tensor) is None for tensor in tensors):
            return None
        if self._made > _MADE_AT_ONCE:
            self.run()
        first, brackets = len(self._terms), len(self._brackets)
        rounded = kept if out.dtype == torch.float32 and kept in _DTYPES else None
        for term in terms:
            brackets_of_term = [self._add_bracket(one) for one in (term.least_bracket, term.above_bracket)]
            self._terms.append(_row(term, *brackets_of_term))
            self._held.append((term.tensor, term.row_ranks, term.factors))
            self._made += 0 if term.factors is None else term.factors.bytes
        self._tensors.append(
            (base.data_ptr(), out.data_ptr(), _dtype(base), _dtype(out), first, len(terms),
             mix.consensus, mix.normalize, mix.scale, mix.divisor, 0 if rounded is None else _DTYPES[rounded],
             len(self._brackets) > brackets, _factored(terms), 0, base.numel(), self._pieces)
        )  # fmt: skip
        self._pieces += _pieces_of(base.numel())
        self._held.append(base)
        self._outs.append(out)
        self._norms.append(PendingNorm(rounded is not None))
        return self._norms[-1]

    def _add_bracket(self, bracket: Bracket | None) -> int:
        """Its number, -1 where there is none."""
        if bracket is None:
            return -1
        self._brackets.append((*bracket, self._keys, 0))
        self._keys += bracket.inside
        return len(self._brackets) - 1

    def copy_afterwards(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy ``source`` to ``target`` when the merges are done."""
        self._copies.append((source, target))

    def run(self) -> None:
        """Make the merges, fill in their norms, make the copies; the batch is empty afterwards."""
        if self._kernel is not None and self._tensors:
            tensors = np.array(self._tensors, dtype=_TENSOR)
            pieces = _cut(tensors["size"])
            self._work(self._kernel, tensors, pieces)
            norms = np.bincount(pieces["tensor"], weights=pieces["norm"], minlength=len(tensors))
            for norm, value in zip(self._norms, norms.tolist(), strict=True):
                norm.value = value
            # The kernel writes behind torch's back; others who keep the tensors' versions have to see it.
            torch.autograd.graph.increment_version(self._outs)
        for source, target in self._copies:
            target.copy_(source)
        for kept in (self._tensors, self._terms, self._brackets, self._norms, self._outs, self._held, self._copies):
            kept.clear()
        self._keys = self._pieces = self._made = 0

    def _work(self, kernel: MergeKernel, tensors: Any, pieces: Any) -> None:
        terms, brackets = np.array(self._terms, dtype=_TERM), np.array(self._brackets, dtype=_BRACKET)
        keys, norms = np.empty(self._keys, dtype=np.int64), np.empty(len(pieces) * _BLOCKS)
        batch = _batch((tensors, terms, pieces, brackets, keys, norms))
        _on_threads(kernel.merge_pieces, batch, len(pieces))
        if self._brackets:
            _on_threads(kernel.settle_tensors, batch, len(tensors))


def _row(term: Term, least_bracket: int = -1, above_bracket: int = -1) -> tuple[Any, ...]:
    """A term of the table."""
    ranked, ranks = term.row_ranks is not None, term.row_ranks
    return (
        term.tensor.data_ptr() if term.factors is None else 0, 0 if ranks is None else ranks.data_ptr(),
        _factors(term.factors), term.least.position, term.above.position,
        _dtype(term.tensor), term.is_delta, _MODES[term.mode], 0 if ranks is None else ranks.element_size(),
        term.factor, term.weight, term.least.value, term.above.value,
        term.start if ranked else 0.0, term.slope if ranked else 0.0,
        *term.keys, term.threshold, least_bracket, above_bracket, 0,
    )  # fmt: skip


def _factors(factors: FactoredDelta | None) -> tuple[Any, ...]:
    if factors is None:
        return _NO_FACTORS
    _, rows, rank = factors.left.shape
    return factors.left.data_ptr(), factors.right.data_ptr(), rows, factors.columns, rank, factors.scaling


def _factored(terms: Sequence[Term]) -> int:
    """How many of a tensor's terms have factors."""
    return sum(term.factors is not None for term in terms)


def _batch(tables: tuple[Any, ...]) -> Any:
    """The structure of a batch: tensors, terms, pieces, brackets, keys, norms."""
    tensors, pieces = tables[0], tables[2]
    numbers = (len(tensors), len(pieces), int(tensors["terms"].max()), int(tensors["factored"].max()))
    return np.array((*(table.ctypes.data for table in tables), *numbers), dtype=_BATCH)


def kept_norms(kernel: MergeKernel, terms: Sequence[Term], base: torch.Tensor) -> list[tuple[float, float]]:
    """L1 norms of the task vectors of one tensor's terms, whose ranks are exact, and of what the terms keep of them."""
    rows = np.array([_row(term._replace(factor=1.0)) for term in terms], dtype=_TERM)
    size, count = base.numel(), _pieces_of(base.numel())
    tensors = np.array(
        [
            (base.data_ptr(), 0, _dtype(base), 0, number, 1, 0, 0, 1.0, 1.0, 0, 0, _factored([term]), 0, size, 0)
            for number, term in enumerate(terms)
        ],
        dtype=_TENSOR,
    )
    pieces = _cut(tensors["size"])
    brackets, keys, norms = np.empty(0, dtype=_BRACKET), np.empty(0, dtype=np.int64), np.empty(len(pieces) * _BLOCKS)
    _on_threads(kernel.measure_pieces, _batch((tensors, rows, pieces, brackets, keys, norms)), len(pieces))
    whole, kept = (sums.reshape(-1, count).sum(axis=1).tolist() for sums in (norms[::_BLOCKS], pieces["norm"]))
    return list(zip(whole, kept, strict=True))


def multiplies_alike(kernel: MergeKernel, factors: FactoredDelta) -> bool:
    """Whether the kernel's product of factors is torch's, bit for bit; so it is for all factors of their shapes."""
    made = torch.empty(factors.shape, dtype=torch.float32)
    expansion = np.array((_factors(factors), made.data_ptr(), made.numel()), dtype=_EXPANSION)
    _on_threads(kernel.expand_factors, expansion, _pieces_of(made.numel()))
    return torch.equal(made, factors.expand())


def counter(kernel: MergeKernel | None) -> Count:
    """What counts a task vector's entries: the kernel where there is one, or torch."""
    return count_entries if kernel is None else partial(_count, kernel)


def _count(kernel: MergeKernel, delta: TaskVector, keys: Keys) -> Keys:
    dtype, base_dtype = _dtype(delta.tensor), _dtype(delta.base)
    if dtype is None or base_dtype is None:
        return count_entries(delta, keys)
    counts = np.zeros(len(keys) + 1, dtype=np.int64)
    entries = delta.tensor.data_ptr() if delta.factors is None else 0
    addresses = (entries, delta.base.data_ptr(), _factors(delta.factors), keys.ctypes.data, counts.ctypes.data)
    numbers = (delta.size, dtype, base_dtype, delta.is_delta, len(keys))
    _on_threads(kernel.count_entries, np.array((*addresses, *numbers), dtype=_COUNTING), _pieces_of(delta.size))
    return counts


def _on_threads(work: SharedWork, structure: Any, parts: int) -> None:
    """Call a function of the kernel on as many threads as torch has, or as there are parts."""
    taken = np.zeros(1, dtype=np.int64)
    results: list[int] = []

    def share() -> None:
        results.append(work(structure.ctypes.data, taken.ctypes.data))

    # The kernel runs without Python's lock, so plain threads share the work; the last to end is waited for once.
    helpers = [threading.Thread(target=share) for _ in range(min(torch.get_num_threads(), parts) - 1)]
    for helper in helpers:
        helper.start()
    share()
    for helper in helpers:
        helper.join()
    if 2 in results:
        raise AssertionError("a task vector has changed since its entries were counted")
    if all(results):
        raise MemoryError("there is no memory for the buffers of a merge")


def _pieces_of(size: Any) -> Any:
    """How many pieces a size, or an array of sizes, is cut into."""
    return -(-size // _PIECE_ENTRIES)


def _cut(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Pieces of at most 2^17 entries, of the tensors in order."""
    counts = _pieces_of(sizes)
    pieces = np.zeros(int(counts.sum()), dtype=_PIECE)
    pieces["tensor"] = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(pieces)) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces["start"] = within * _PIECE_ENTRIES
    pieces["end"] = np.minimum(pieces["start"] + _PIECE_ENTRIES, sizes[pieces["tensor"]])
    return pieces
