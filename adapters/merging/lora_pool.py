"""LoRAs merged as LoRAs: the result is one PEFT adapter again.

    cat      B = [w_1 s_1 B_1, w_2 s_2 B_2, ...], A = [S(A_1); S(A_2); ...]: dW = sum w_i s_i B_i S(A_i), exact; ranks
             add up (LoRA Soups, arXiv 2410.13025)
    svd      cat, then the best approximation of a given rank (Eckart-Young; by QR of the factors)
    factor   B = sum w_i s_i B_i, A = sum w_i S(A_i): Evo-Merging's operator (arXiv 2509.12951), with cross terms;
             lower ranks are padded with zeros

S keeps a fraction of A's entries, the largest (``density``). Every LoRA's own rank, alpha and target
modules are honoured: a module that only some LoRAs adapt is merged from those.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mergefront.adapters.checkpoints import Checkpoint
from mergefront.adapters.merging.lora import LoraModule, lora_modules
from mergefront.adapters.merging.ranking import kept_count
from mergefront.adapters.merging.writer import complete_folder
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

Operator = Literal["cat", "svd", "factor"]
ModuleWeight = Callable[[str, str], float]


class Factors(NamedTuple):
    """One merged module in float32: dW = b @ a (a is r x in, b is out x r)."""

    a: torch.Tensor
    b: torch.Tensor


def merge_loras(
    loras: Mapping[str, str | Path],
    weights: Mapping[str, float] | ModuleWeight,
    *,
    operator: Operator = "cat",
    densities: Mapping[str, float] | None = None,
    rank: int | None = None,
) -> dict[str, Factors]:
    """Merged factors by base tensor name.

    ``weights`` is one number per LoRA, or a function of (LoRA, tensor name) for weights by layer or to
    switch modules off (0). ``densities`` (default 1) is S's fraction per LoRA; ``rank`` is what "svd"
    reduces to (default: the largest of the pool). Raises ``UserError`` for LoRAs that carry whole
    tensors, store a matrix transposed, or do not fit together.
    """
    if not loras:
        raise UserError("a merge of LoRAs needs at least one LoRA")
    opened = {name: Checkpoint(path) for name, path in loras.items()}
    modules: dict[str, dict[str, LoraModule]] = {}
    for name, checkpoint in opened.items():
        found, whole = lora_modules(checkpoint.header)
        if whole:
            raise UserError(
                f"LoRA {name!r} also carries whole tensors ({next(iter(whole))}); fold it into the base instead"
            )
        for target, module in found.items():
            if module.transposed:
                raise UserError(f"LoRA {name!r}: {target} is stored transposed; fold it into the base instead")
            modules.setdefault(target, {})[name] = module
    merged = {}
    for target, owners in modules.items():
        parts = []
        if len({module.shape for module in owners.values()}) > 1:
            shapes = ", ".join(f"{name} {list(module.shape)}" for name, module in owners.items())
            raise UserError(f"{target} has different shapes in the pool: {shapes}")
        for name, module in owners.items():
            weight = float(weights(name, target) if callable(weights) else weights[name])
            if weight != 0:
                a = keep_largest(opened[name][module.a].float(), (densities or {}).get(name, 1.0))
                parts.append((weight, module.scaling, a, opened[name][module.b].float()))
        if parts:
            most = max(module.rank for module in owners.values())
            merged[target] = _combine(parts, operator, rank if rank is not None else most)
    return merged


def keep_largest(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of largest magnitude, floor(density * size) of them, the others zero; not rescaled."""
    import torch

    kept = kept_count(density, matrix.numel())
    if kept == matrix.numel():
        return matrix
    mask = torch.zeros(matrix.numel(), dtype=torch.bool)
    order = matrix.abs().reshape(-1).argsort(descending=True, stable=True)
    mask[order[:kept]] = True
    return torch.where(mask.view(matrix.shape), matrix, 0.0)


def _combine(parts: list[tuple[float, float, torch.Tensor, torch.Tensor]], operator: Operator, rank: int) -> Factors:
    import torch

    if operator == "factor":
        most = max(a.shape[0] for _, _, a, _ in parts)
        a_sum = torch.zeros(most, parts[0][2].shape[1])
        b_sum = torch.zeros(parts[0][3].shape[0], most)
        for weight, scaling, a, b in parts:
            a_sum[: a.shape[0]] += weight * a
            b_sum[:, : b.shape[1]] += weight * scaling * b
        return Factors(a_sum, b_sum)
    joined = Factors(
        torch.cat([a for _, _, a, _ in parts]),
        torch.cat([weight * scaling * b for weight, scaling, _, b in parts], dim=1),
    )
    if operator == "cat":
        return joined
    if operator != "svd":
        raise UserError(f"LoRA operator {operator!r} is unknown; use cat, svd or factor")
    return reduce_rank(joined, rank)


def reduce_rank(factors: Factors, rank: int) -> Factors:
    """The product of least squared error with at most ``rank`` columns, singular values shared evenly."""
    import torch

    q_b, r_b = torch.linalg.qr(factors.b)
    q_a, r_a = torch.linalg.qr(factors.a.T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, s.numel())
    root = s[:kept].sqrt()
    return Factors(root.unsqueeze(1) * (v[:kept] @ q_a.T), (q_b @ u[:, :kept]) * root)


def write_lora(merged: Mapping[str, Factors], out: str | Path, like: str | Path) -> Path:
    """Write merged factors as a PEFT folder; ``like`` is a LoRA of the pool (for its base model's name)."""
    from safetensors.torch import save_file

    if not merged:
        raise UserError("every module of the merged LoRA is switched off; give at least one weight other than 0")
    out = Path(out)
    names = {target: target.removesuffix(".weight") for target in merged}
    ranks = {names[target]: int(factors.a.shape[0]) for target, factors in merged.items()}
    most = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": Checkpoint(like).header.config.get("task_type", "CAUSAL_LM"),
        "base_model_name_or_path": Checkpoint(like).header.config.get("base_model_name_or_path"),
        "r": most,
        "lora_alpha": most,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "target_modules": sorted(ranks),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {}
    for target, factors in merged.items():
        tensors[f"base_model.model.{names[target]}.lora_A.weight"] = factors.a.contiguous()
        tensors[f"base_model.model.{names[target]}.lora_B.weight"] = factors.b.contiguous()
    with complete_folder(out) as partial:
        save_file(tensors, partial / "adapter_model.safetensors")
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out
