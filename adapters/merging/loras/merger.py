"""Merging one tensor by a method of LoRA factors: combine the factors, multiply, add to the base.

Nothing of the size of the model is held per LoRA. A tensor that a LoRA carries whole (a bias, a module
saved whole) takes part with its difference from the base, a bias of B with itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergefront.adapters.merging.coefficients import Coefficients, TensorMerge
from mergefront.adapters.merging.loras.pool import Factors, Part, combine, keep_largest
from mergefront.adapters.merging.task_vectors.fused import FusedBatch
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import MergeMethod

if TYPE_CHECKING:
    import torch


class LoraMerger:
    """LoRA methods on a pool whose experts are LoRAs."""

    def __init__(self, pool: TensorPool) -> None:
        self._pool = pool

    def check(self, method: MergeMethod, models: tuple[str, ...]) -> None:
        """Raises ``UserError`` naming an expert that is no LoRA."""
        for name in models:
            if not self._pool.is_lora(name):
                raise UserError(
                    f"{method.name} merges the factors of LoRAs, and expert {name!r} is no PEFT LoRA folder; "
                    "give the LoRA itself, or use task_arithmetic"
                )
            stacked = self._pool.stacked_experts(name)
            if stacked is not None:
                raise UserError(
                    f"{method.name} merges the factors of matrices, and expert {name!r} adapts {stacked}, which holds "
                    "all experts; use task_arithmetic"
                )

    def reads(self, coefficients: Coefficients) -> Sequence[str]:
        """See ``engine.Merger``: it asks for factors alone."""
        return ()

    def merge(self, wanted: TensorMerge, out: torch.Tensor, batch: FusedBatch) -> torch.Tensor:
        """Merge one tensor into ``out`` (see ``engine.Merger``)."""
        import torch

        coefficients, base, operator = wanted.coefficients, wanted.origin, wanted.method.lora
        assert operator is not None
        parts: list[Part] = []
        ranks = [0]
        total = None
        for model in coefficients.models:
            values = coefficients.of_model(model)
            weight = float(values["weight"]) * bool(values["active"])
            module = self._pool.lora_module(wanted.name, model)
            if module is not None:
                ranks.append(module.rank)
            if weight == 0:
                continue
            if module is not None:
                a, b = self._pool.lora_factors(module, model)
                a = keep_largest(a, float(values["density"]))
                factors = Factors(b.T, a.T) if module.transposed else Factors(a, b)
                parts.append(Part(weight, module.scaling, factors))
            beside = self._pool.beside_factors(wanted.name, model)
            if beside is not None:
                added = weight * (beside.tensor.float() if beside.is_delta else beside.tensor.float() - base.float())
                total = added if total is None else total + added
        if parts:
            rank = round(float(coefficients.of_recipe("rank"))) if operator == "svd" else 0
            merged = combine(parts, operator, rank or max(ranks))
            product = merged.b @ merged.a
            product = product.view(base.shape)
            total = product if total is None else total + product
        if total is None:
            out.copy_(base)
            return torch.zeros((), dtype=torch.float64)
        out.copy_(base.float() + total)
        return total.abs().sum()
