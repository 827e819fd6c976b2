"""Merging tensors by a method of the task-vector family: terms, then one pass of a fused kernel."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mergefront.adapters.merging.coefficients import Coefficients
from mergefront.adapters.merging.task_vectors.c_kernel import load_merge_pieces
from mergefront.adapters.merging.task_vectors.fused import FusedBatch, PendingNorm, kernel_dtype
from mergefront.adapters.merging.task_vectors.masks import LEVELS
from mergefront.adapters.merging.task_vectors.ranks import EVERY
from mergefront.adapters.merging.task_vectors.terms import TermBuilder
from mergefront.adapters.merging.task_vectors.torch_kernel import (
    Fusion,
    Kernel,
    Term,
    compiled_kernel,
    eager_kernel,
    pack,
)
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.recipes.methods import MergeMethod

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)
_SMALLEST_SUM = 1e-8


class TaskVectorMerger:
    """The task-vector family on a pool.

    ``compile``: on a CPU by the kernel of fused_merge.c, on other devices by torch.compile. Where compiling fails
    torch's operations do the same.
    """

    def __init__(self, pool: TensorPool, compile: bool) -> None:
        on_cpu = pool.device.type == "cpu"
        self.native = load_merge_pieces() if compile and on_cpu else None
        self.compile = compile and not on_cpu
        self._terms = TermBuilder(pool, uniform=self.compile)

    def batch(self) -> FusedBatch | None:
        """An empty batch for ``merge``, or None where tensors are merged one by one."""
        return None if self.native is None else FusedBatch(self.native)

    def merge(
        self,
        name: str,
        method: MergeMethod,
        coefficients: Coefficients,
        base: torch.Tensor,
        out: torch.Tensor,
        batch: FusedBatch | None,
    ) -> torch.Tensor | PendingNorm:
        """Merge one tensor into ``out`` (contiguous), now or when ``batch`` runs; the L1 norm of what was added."""
        import torch

        weights = dict(zip(coefficients.models, coefficients.of_models("weight"), strict=True))
        scale = float(coefficients.of_recipe("lambda"))
        normalize = bool(coefficients.of_recipe("normalize"))
        # Experts in the order of their names, so that permuting them changes nothing, rounding included.
        terms = [
            term
            for model in sorted(coefficients.models)
            if (weights[model] != 0 or self.compile)
            and (term := self._terms.term(name, method, coefficients, model, base)) is not None
        ]
        if not terms or not any(term.weight for term in terms) or scale == 0 or not base.numel():
            out.copy_(base)
            return torch.zeros((), dtype=torch.float64)
        divisor = sum(float(weight) for weight in weights.values())
        if abs(divisor) < _SMALLEST_SUM:
            divisor = 1.0
        fusion = Fusion(
            tuple(term.mode for term in terms),
            tuple(term.is_delta for term in terms),
            method.consensus == "sign",
            normalize,
        )
        whole = _whole_expert(terms, scale, divisor if normalize and method.consensus != "sign" else None, normalize)
        if batch is not None and all(
            kernel_dtype(tensor) is not None for tensor in (base, out, *(term.tensor for term in terms))
        ):
            pending = batch.add(fusion, base, terms, scale, divisor, out)
            if whole is not None:
                batch.copy_afterwards(whole, out.view(-1))
            return pending
        numbers, integers = pack(terms, scale, divisor, base.device)
        kernel = self._kernel(fusion)
        norm = kernel(
            _flat(base),
            [_flat(term.tensor) for term in terms],
            [term.row_ranks for term in terms if term.row_ranks is not None],
            numbers,
            integers,
            _flat(out),
        )
        if whole is not None:
            out.view(-1).copy_(whole)
        return norm

    def _kernel(self, fusion: Fusion) -> Kernel:
        if not self.compile:
            return eager_kernel(fusion)

        def guarded(*arguments: object) -> torch.Tensor:
            try:
                return compiled_kernel(fusion)(*arguments)
            except Exception as error:
                _LOG.warning("torch.compile failed, merging eagerly from now on (slower, same result): %s", error)
                self.compile = self._terms.uniform = False
                return eager_kernel(fusion)(*arguments)

        return guarded


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as one dimension, and no view: torch.compile guards views at a cost per call."""
    import torch

    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), (tensor.numel(),), (1,))


def _whole_expert(terms: list[Term], scale: float, divisor: float | None, normalize: bool) -> torch.Tensor | None:
    """The expert itself when the recipe says so: base + (expert - base) would lose its last digit."""
    active = [term for term in terms if term.weight]
    if len(active) != 1:
        return None
    (term,) = active
    kept_whole = (
        term.mode == "all"
        or (term.mode == "largest" and term.least is EVERY)
        or (term.mode == "random" and term.threshold == LEVELS)
    )
    if divisor is None:
        divisor = term.weight if normalize else 1.0
    whole = not term.is_delta and kept_whole and term.factor * scale / divisor == 1.0
    return term.tensor if whole else None
