"""The task-vector family (``reference.py`` has its formulas) on one stretch of entries, in torch's operations.

One function of tensors serves all methods of the family. What differs between methods is data (a
``Fusion``), fixed when the function is compiled. What differs between recipes is numbers, given
to the compiled function as tensors. Run eagerly it does the same operations on stretches that fit
into the processor's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from mergefront.adapters.merging.offload.factored import FactoredDelta
from mergefront.adapters.merging.offload.memory import stretch
from mergefront.adapters.merging.task_vectors.masks import LEVELS, entry_index, random_levels
from mergefront.adapters.merging.task_vectors.ranks import EVERY, NONE, Bracket, Rank
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector

Mode = Literal["all", "largest", "window", "random", "ranked"]
_NUMBERS, _INTEGERS = 4, 5


class Term(NamedTuple):
    """One expert's part in the merge of one tensor.

    ``tensor`` is flat (n): the expert's entries, or its task vector where ``is_delta``; empty where that is the product
    of ``factors`` (in float32). ``factor`` is
    the weight times the rescaling. ``least`` and ``above`` bound the ranks kept by "largest" (least
    only) and "window" (those after ``above``, down to ``least``); either is a guess where it has a
    bracket. ``keys`` and ``threshold`` are the mask of "random"; ``row_ranks`` (n) with ``start`` and
    ``slope`` give the keep probability of "ranked", times 65536.
    """

    tensor: torch.Tensor
    is_delta: bool
    mode: Mode
    weight: float
    factor: float
    least: Rank = EVERY
    above: Rank = NONE
    least_bracket: Bracket | None = None
    above_bracket: Bracket | None = None
    keys: tuple[int, int] = (0, 0)
    threshold: int = LEVELS
    row_ranks: torch.Tensor | None = None
    start: float = 0.0
    slope: float = 0.0
    factors: FactoredDelta | None = None

    def expanded(self) -> Term:
        """The same with the task vector as its entries."""
        if self.factors is None:
            return self
        return self._replace(tensor=self.factors.expand().view(-1), factors=None)


@dataclass(frozen=True)
class Fusion:
    """What is fixed when the arithmetic is compiled: one mode per expert, and the method's switches."""

    modes: tuple[Mode, ...]
    is_delta: tuple[bool, ...]
    consensus: bool
    normalize: bool


class Mix(NamedTuple):
    """How the terms of one tensor are put together: base + ``scale`` * sum of terms, divided by ``divisor``.

    ``consensus`` elects signs; ``normalize`` divides, with ``consensus`` by the weights that took part instead.
    """

    terms: Sequence[Term]
    consensus: bool
    normalize: bool
    scale: float
    divisor: float

    @property
    def fusion(self) -> Fusion:
        """What is compiled for it."""
        modes, is_delta = tuple(term.mode for term in self.terms), tuple(term.is_delta for term in self.terms)
        return Fusion(modes, is_delta, self.consensus, self.normalize)


class Operands(NamedTuple):
    """What is merged, flat (n): ``base``, the experts' ``tensors``, and the recipe's numbers as ``pack`` makes them.

    ``row_ranks`` has one tensor (n) per expert of mode "ranked", in order.
    """

    base: torch.Tensor
    tensors: Sequence[torch.Tensor]
    row_ranks: Sequence[torch.Tensor]
    numbers: torch.Tensor
    integers: torch.Tensor


def pack(mix: Mix, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The recipe's numbers as tensors: float32 (4 per expert, then lambda and divisor), int32 (5 per expert)."""
    numbers: list[float] = []
    integers: list[int] = []
    for term in mix.terms:
        ranked = term.mode == "ranked"
        numbers += [
            term.factor,
            term.weight,
            term.start if ranked else term.least.value,
            term.slope if ranked else term.above.value,
        ]
        integers += [term.least.position, term.above.position, *term.keys, term.threshold]
    numbers += [mix.scale, mix.divisor]
    return (
        torch.tensor(numbers, dtype=torch.float32, device=device),
        torch.tensor(integers, dtype=torch.int32, device=device),
    )


def fuse(fusion: Fusion, operands: Operands, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Merged entries (float32, n) and the L1 norm of what was added (float32, scalar).

    ``index`` (int32, n) counts entries within the whole tensor.
    """
    base, tensors, row_ranks, numbers, integers = operands
    origin = base.float()
    ranks = iter(row_ranks)
    parts = []
    for m, (mode, is_delta, tensor) in enumerate(zip(fusion.modes, fusion.is_delta, tensors, strict=True)):
        factor, _, first, second = (numbers[_NUMBERS * m + i] for i in range(_NUMBERS))
        least, above, key_1, key_2, threshold = (integers[_INTEGERS * m + i] for i in range(_INTEGERS))
        delta = tensor.float() if is_delta else tensor.float() - origin
        level = next(ranks) if mode == "ranked" else None
        keep = kept_entries(mode, delta, index, (first, second), (least, above, key_1, key_2, threshold), level)
        if keep is not None:
            delta = torch.where(keep, delta, 0.0)
        parts.append(delta * factor)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    if fusion.consensus:
        positive = total >= 0
        total = torch.zeros_like(total)
        divisor = torch.zeros_like(total)
        for m, part in enumerate(parts):
            agrees = torch.where(positive, part > 0, part < 0)
            total = total + torch.where(agrees, part, 0.0)
            if fusion.normalize:
                divisor = divisor + torch.where(agrees, numbers[_NUMBERS * m + 1], 0.0)
        if fusion.normalize:
            total = total / torch.where(divisor == 0, 1.0, divisor)
    elif fusion.normalize:
        total = total / numbers[-1]
    total = total * numbers[-2]
    return origin + total, total.abs().sum()


def kept_entries(
    mode: Mode,
    delta: torch.Tensor,
    index: torch.Tensor,
    numbers: Sequence[torch.Tensor],
    integers: Sequence[torch.Tensor],
    row_ranks: torch.Tensor | None,
) -> torch.Tensor | None:
    """Which entries of a task vector are kept (bool, n), or None for all of them."""
    if mode == "all":
        return None
    first, second = numbers
    least, above, key_1, key_2, threshold = integers
    if mode in ("largest", "window"):
        magnitude = delta.abs()
        keep = (magnitude > first) | ((magnitude == first) & (index <= least))
        if mode == "window":
            keep = keep & ~((magnitude > second) | ((magnitude == second) & (index <= above)))
        return keep
    levels = random_levels(index, key_1, key_2)
    if mode == "random":
        return levels < threshold
    assert row_ranks is not None
    return levels.float() < first + second * row_ranks.float()


def kept_norms(term: Term, delta: TaskVector) -> tuple[float, float]:
    """L1 norm of a task vector, and of what a term keeps of it."""
    numbers, integers = pack(Mix([term], False, False, 1.0, 1.0), delta.device)
    whole, kept = 0.0, 0.0
    for start, part in delta.stretches():
        end = start + len(part)
        index = entry_index(start, end, part.device)
        ranks = None if term.row_ranks is None else term.row_ranks[start:end]
        keep = kept_entries(term.mode, part, index, numbers[2:_NUMBERS].unbind(), integers.unbind(), ranks)
        magnitude = part.abs().double()
        whole += float(magnitude.sum())
        kept += float(magnitude.sum() if keep is None else (magnitude * keep).sum())
    return whole, kept


Kernel = Callable[["Operands", "torch.Tensor"], "torch.Tensor"]
"""Writes the merge of its operands into a tensor (flat, n) and returns the L1 norm of what was added."""


def eager_kernel(fusion: Fusion) -> Kernel:
    """``fuse`` stretch by stretch."""

    def kernel(operands: Operands, out: torch.Tensor) -> torch.Tensor:
        base, tensors, row_ranks, numbers, integers = operands
        size = base.numel()
        step = stretch(base.device)
        norms = []
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            index = entry_index(part.start, part.stop, base.device)
            stretches = Operands(
                base[part], [t[part] for t in tensors], [r[part] for r in row_ranks], numbers, integers
            )
            merged, norm = fuse(fusion, stretches, index)
            out[part].copy_(merged)
            norms.append(norm)
        return torch.stack(norms).double().sum()

    return kernel


@functools.lru_cache(maxsize=64)
def compiled_kernel(fusion: Fusion) -> Kernel:
    """``fuse`` as one pass over memory, compiled when first called."""

    def kernel(operands: Operands, out: torch.Tensor) -> torch.Tensor:
        index = torch.arange(out.shape[0], dtype=torch.int32, device=out.device)
        merged, norm = fuse(fusion, operands, index)
        out.copy_(merged)
        return norm

    # torch.compile counts recompilations per code object and gives up after a few: every fusion gets its own.
    kernel.__code__ = kernel.__code__.replace(co_name=f"merge_{len(fusion.modes)}_{abs(hash(fusion)):x}")
    return torch.compile(kernel, dynamic=True, fullgraph=True)
