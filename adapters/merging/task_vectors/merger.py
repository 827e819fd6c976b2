"""Merging tensors by a method of the task-vector family: terms, then one pass of a fused kernel."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from mergefront.adapters.merging.coefficients import Coefficients, TensorMerge
from mergefront.adapters.merging.sources import Entry
from mergefront.adapters.merging.task_vectors.c_kernel import MergeKernel
from mergefront.adapters.merging.task_vectors.fused import FusedBatch, PendingNorm
from mergefront.adapters.merging.task_vectors.masks import LEVELS
from mergefront.adapters.merging.task_vectors.ranks import EVERY
from mergefront.adapters.merging.task_vectors.task_vector import TaskVector
from mergefront.adapters.merging.task_vectors.terms import TermBuilder, settled
from mergefront.adapters.merging.task_vectors.torch_kernel import (
    Fusion,
    Kernel,
    Mix,
    Operands,
    compiled_kernel,
    eager_kernel,
    pack,
)
from mergefront.adapters.merging.tensor_pool import TensorPool

_LOG = logging.getLogger(__name__)
_SMALLEST_SUM = 1e-8
"""As in mergekit 0.1.5: weights whose sum is nearer to zero are not divided by it."""


class TaskVectorMerger:
    """The task-vector family on a pool: terms, then one pass of a fused kernel.

    A batch with the ``kernel`` of fused_merge.c takes what it can. The rest is merged by torch, with ``compile`` by
    torch.compile beside the CPU; where that fails, torch's operations do the same.
    """

    def __init__(self, pool: TensorPool, compile: bool, kernel: MergeKernel | None = None) -> None:
        self.compile = compile
        self._terms = TermBuilder(pool, compile, kernel)

    def reads(self, coefficients: Coefficients) -> Sequence[str]:
        """See ``engine.Merger``: experts in the order of their names, so that permuting them changes nothing, rounding
        included."""
        weights = dict(zip(coefficients.models, coefficients.of_models("weight"), strict=True))
        return [model for model in sorted(coefficients.models) if weights[model] != 0 or self.compile]

    def merge(self, wanted: TensorMerge, out: torch.Tensor, batch: FusedBatch) -> torch.Tensor | PendingNorm:
        """Merge one tensor into ``out`` (see ``engine.Merger``)."""
        base, coefficients = wanted.origin, wanted.coefficients
        scale = float(coefficients.of_recipe("lambda"))
        normalize = bool(coefficients.of_recipe("normalize"))
        read = self.reads(coefficients)
        terms = self._terms.terms(wanted, read)
        if not terms or not any(term.weight for term in terms) or scale == 0 or not base.numel():
            out.copy_(base)
            return torch.zeros((), dtype=torch.float64)
        divisor = sum(float(weight) for weight in coefficients.of_models("weight"))
        if abs(divisor) < _SMALLEST_SUM:
            divisor = 1.0
        mix = Mix(terms, wanted.method.consensus == "sign", normalize, scale, divisor)
        whole = _whole_expert(mix)
        pending = batch.add(mix, base, out, wanted.kept)
        if pending is not None:
            if whole is not None:
                batch.copy_afterwards(whole, out.view(-1))
                pending.rounded = False
            return pending
        terms = [term.expanded() for term in terms]
        exact = [settled(term, TaskVector(Entry(term.tensor, term.is_delta), base)) for term in terms]
        mix = mix._replace(terms=exact)
        operands = Operands(
            _flat(base),
            [_flat(term.tensor) for term in terms],
            [term.row_ranks for term in terms if term.row_ranks is not None],
            *pack(mix, base.device),
        )
        norm = self._kernel(mix.fusion, base.device)(operands, _flat(out))
        if whole is not None:
            out.view(-1).copy_(whole)
        return norm

    def _kernel(self, fusion: Fusion, device: torch.device) -> Kernel:
        if not self.compile or device.type == "cpu":
            return eager_kernel(fusion)

        def guarded(operands: Operands, out: torch.Tensor) -> torch.Tensor:
            try:
                return compiled_kernel(fusion)(operands, out)
            except Exception as error:
                _LOG.warning("torch.compile failed, merging eagerly from now on (slower, same result): %s", error)
                self.compile = self._terms.uniform = False
                return eager_kernel(fusion)(operands, out)

        return guarded


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as one dimension, and no view: torch.compile guards views at a cost per call."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), (tensor.numel(),), (1,))


def _whole_expert(mix: Mix) -> torch.Tensor | None:
    """The expert itself when the recipe says so: base + (expert - base) would lose its last digit."""
    active = [term for term in mix.terms if term.weight]
    if len(active) != 1:
        return None
    (term,) = active
    kept_whole = (
        term.mode == "all"
        or (term.mode == "largest" and term.least is EVERY)
        or (term.mode == "random" and term.threshold == LEVELS)
    )
    divisor = 1.0 if not mix.normalize else term.weight if mix.consensus else mix.divisor
    return term.tensor if not term.is_delta and kept_whole and term.factor * mix.scale / divisor == 1.0 else None
