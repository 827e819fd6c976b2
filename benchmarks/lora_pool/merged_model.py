"""The pool's merge, written in place into the live model, and its loss on the target's items.

    cat      dW = sum_i beta_i s_i B_i S(A_i)                        (LoRA Soups; exact, linear in beta)
    factor   dW = (sum_i beta_i B_i)(sum_i beta_i S(A_i))            (the released Evo-Merging and LoRAHub: scaling
                                                                     ignored, ranks padded with zeros)

S(A) keeps a share alpha of A's entries, those of largest magnitude, per module.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from benchmarks.lora_pool.pool import Pool

Operator = Literal["cat", "factor"]


class MergedModel:
    """The pool's base model with a merge of its LoRAs applied; one instance per pool and operator."""

    def __init__(self, pool: Pool, operator: Operator = "cat") -> None:
        self.operator = operator
        self.names = [lora.name for lora in pool.loras]
        self.model = pool.model
        self._items = {"search": pool.search_items, "report": pool.report_items}
        weights = dict(pool.model.named_parameters())
        self._modules = []
        rank = max(a.shape[0] for lora in pool.loras for a, _ in lora.factors.values())
        for module in pool.loras[0].factors:
            factors = [lora.factors[module] for lora in pool.loras]
            # ranks are padded to the largest, so that all LoRAs of a module are one tensor
            a = torch.stack([torch.nn.functional.pad(a, (0, 0, 0, rank - a.shape[0])) for a, _ in factors])
            b = torch.stack([torch.nn.functional.pad(b, (0, rank - b.shape[1])) for _, b in factors])
            entries = torch.tensor([a.numel() for a, _ in factors])
            ordered = torch.sort(a.abs().flatten(1), descending=True).values
            parameter = weights[f"{module}.weight"]
            self._modules.append((parameter, parameter.detach().clone(), a, b, entries, ordered))
        self._sparse: list[torch.Tensor] = []
        self._sparse_at: bytes | None = None
        self._scalings = torch.tensor([lora.scaling for lora in pool.loras])

    def loss(self, alpha: NDArray[np.float64], beta: NDArray[np.float64], split: str = "search") -> float:
        """Mean cross-entropy (nats per symbol) of the merge on a split's items."""
        self._apply(alpha, torch.as_tensor(beta, dtype=torch.float32))
        items = self._items[split]
        with torch.no_grad():
            logits = self.model(input_ids=items, use_cache=False).logits
            return float(cross_entropy(logits[:, :-1].flatten(0, 1), items[:, 1:].flatten()))

    def _apply(self, alpha: NDArray[np.float64], beta: torch.Tensor) -> None:
        # Only the densities need sorting and comparing; while they stay, the sparse factors do.
        if self._sparse_at != alpha.tobytes():
            share = torch.from_numpy(np.asarray(alpha, dtype=np.float64))
            self._sparse = [
                _keep_largest(a, ordered, share * entries) for _, _, a, _, entries, ordered in self._modules
            ]
            self._sparse_at = alpha.tobytes()
        with torch.no_grad():
            for (parameter, base, _, b, _, _), sparse in zip(self._modules, self._sparse, strict=True):
                if self.operator == "cat":
                    joined = (b * (beta * self._scalings)[:, None, None]).permute(1, 0, 2).flatten(1)
                    torch.addmm(base, joined, sparse.flatten(0, 1), out=parameter.data)
                else:
                    left, right = torch.tensordot(beta, b, 1), torch.tensordot(beta, sparse, 1)
                    torch.addmm(base, left, right, out=parameter.data)


def _keep_largest(a: torch.Tensor, ordered: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """``a`` (``n x rank x in``) with floor(wanted) entries of each LoRA (``n``), ``ordered`` being all magnitudes."""
    kept = torch.floor(wanted + 1e-9).long()
    thresholds = ordered.gather(1, (kept - 1).clamp(min=0)[:, None])
    thresholds[kept == 0] = torch.inf
    return torch.where(a.abs() >= thresholds[:, :, None], a, 0.0)
