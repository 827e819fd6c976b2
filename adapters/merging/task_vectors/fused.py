"""Many tensors' merges in one call of the fused kernel (fused_merge.c), on all threads that torch has.

A batch is a table: one row per tensor, one per expert and tensor, and the pieces into which the tensors are cut
so that threads share the work evenly. The structures below are those of the C source.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from mergefront.adapters.merging.task_vectors.c_kernel import MergePieces
from mergefront.adapters.merging.task_vectors.torch_kernel import Mix

_MODES = {"all": 0, "largest": 1, "window": 2, "random": 3, "ranked": 4}
_TERM = np.dtype(
    [
        ("entries", "u8"), ("row_ranks", "u8"), ("least_position", "i8"), ("above_position", "i8"),
        ("dtype", "i4"), ("is_delta", "i4"), ("mode", "i4"), ("rank_bytes", "i4"),
        ("factor", "f4"), ("weight", "f4"), ("least_value", "f4"), ("above_value", "f4"), ("start", "f4"),
        ("slope", "f4"), ("key_1", "i4"), ("key_2", "i4"), ("threshold", "i4"), ("unused", "i4"),
    ]
)  # fmt: skip
_TENSOR = np.dtype(
    [
        ("base", "u8"), ("out", "u8"), ("base_dtype", "i4"), ("out_dtype", "i4"), ("first_term", "i4"), ("terms", "i4"),
        ("consensus", "i4"), ("normalize", "i4"), ("scale", "f4"), ("divisor", "f4"),
        ("kept_dtype", "i4"), ("unused", "i4"),
    ]
)  # fmt: skip
_PIECE = np.dtype([("tensor", "i8"), ("start", "i8"), ("end", "i8"), ("norm", "f8")])
_PIECE_ENTRIES = 1 << 17
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def _dtype(tensor: torch.Tensor) -> int | None:
    """The kernel's number for a tensor's dtype, or None for one that it does not have."""
    return _DTYPES.get(tensor.dtype)


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
    """Merges of tensors that are made together by ``run``. Until then nothing is written.

    Without a kernel the batch takes none.
    """

    def __init__(self, merge_pieces: MergePieces | None) -> None:
        self._merge_pieces = merge_pieces
        self._tensors: list[tuple[Any, ...]] = []
        self._terms: list[tuple[Any, ...]] = []
        self._sizes: list[int] = []
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
        if self._merge_pieces is None or any(_dtype(tensor) is None for tensor in tensors):
            return None
        first = len(self._terms)
        rounded = kept if out.dtype == torch.float32 and kept in _DTYPES else None
        for term in terms:
            ranked = term.row_ranks is not None
            self._terms.append(
                (
                    term.tensor.data_ptr(), term.row_ranks.data_ptr() if term.row_ranks is not None else 0,
                    term.least.position, term.above.position,
                    _dtype(term.tensor), term.is_delta, _MODES[term.mode],
                    term.row_ranks.element_size() if term.row_ranks is not None else 0,
                    term.factor, term.weight, term.least.value, term.above.value,
                    term.start if ranked else 0.0, term.slope if ranked else 0.0,
                    *term.keys, term.threshold, 0,
                )
            )  # fmt: skip
            self._held.append((term.tensor, term.row_ranks))
        self._tensors.append(
            (base.data_ptr(), out.data_ptr(), _dtype(base), _dtype(out), first, len(terms),
             mix.consensus, mix.normalize, mix.scale, mix.divisor, 0 if rounded is None else _DTYPES[rounded], 0)
        )  # fmt: skip
        self._held.append(base)
        self._outs.append(out)
        self._sizes.append(base.numel())
        self._norms.append(PendingNorm(rounded is not None))
        return self._norms[-1]

    def copy_afterwards(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copy ``source`` to ``target`` when the merges are done."""
        self._copies.append((source, target))

    def run(self) -> None:
        """Make the merges, fill in their norms, make the copies; the batch is empty afterwards."""
        if self._tensors:
            tensors = np.array(self._tensors, dtype=_TENSOR)
            terms = np.array(self._terms, dtype=_TERM)
            pieces = _cut(np.array(self._sizes, dtype=np.int64))
            self._work(tensors, terms, pieces, min(torch.get_num_threads(), len(pieces)))
            norms = np.bincount(pieces["tensor"], weights=pieces["norm"], minlength=len(tensors))
            for norm, value in zip(self._norms, norms.tolist(), strict=True):
                norm.value = value
            # The kernel writes behind torch's back; others who keep the tensors' versions have to see it.
            torch.autograd.graph.increment_version(self._outs)
        for source, target in self._copies:
            target.copy_(source)
        for kept in (self._tensors, self._terms, self._sizes, self._norms, self._outs, self._held, self._copies):
            kept.clear()

    def _work(self, tensors: Any, terms: Any, pieces: Any, threads: int) -> None:
        most_terms = int(tensors["terms"].max())
        arguments = (tensors.ctypes.data, terms.ctypes.data, pieces.ctypes.data, len(pieces), most_terms)
        taken = np.zeros(1, dtype=np.int64)
        failed: list[int] = []

        merge_pieces = self._merge_pieces
        assert merge_pieces is not None

        def merge() -> None:
            failed.append(merge_pieces(*arguments, taken.ctypes.data))

        # The kernel runs without Python's lock, so plain threads share the work; the last to end is waited for once.
        helpers = [threading.Thread(target=merge) for _ in range(threads - 1)]
        for helper in helpers:
            helper.start()
        merge()
        for helper in helpers:
            helper.join()
        if all(failed):
            raise MemoryError("there is no memory for the buffers of a merge")


def _cut(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
    """Pieces of at most 2^17 entries, of the tensors in order."""
    counts = -(-sizes // _PIECE_ENTRIES)
    pieces = np.zeros(int(counts.sum()), dtype=_PIECE)
    pieces["tensor"] = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(pieces)) - np.repeat(np.cumsum(counts) - counts, counts)
    pieces["start"] = within * _PIECE_ENTRIES
    pieces["end"] = np.minimum(pieces["start"] + _PIECE_ENTRIES, sizes[pieces["tensor"]])
    return pieces
