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
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, read_header
from mergefront.adapters.checkpoints.lora import LoraModule, read_lora
from mergefront.adapters.checkpoints.writer import complete_folder
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import METHODS, kept_count
from mergefront.optimizer.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

Operator = Literal["cat", "svd", "factor"]
ModuleValue = Callable[[str, str], float]
_SMALLEST_SUM = 1e-8
"""As when tensors are merged: weights whose sum is nearer to zero are not divided by it."""


class Factors(NamedTuple):
    """One module in float32: dW = b @ a (a is r x in, b is out x r)."""

    a: torch.Tensor
    b: torch.Tensor


class Part(NamedTuple):
    """One LoRA's part in a merged module; ``scaling`` is its alpha over its rank, or as it says."""

    weight: float
    scaling: float
    factors: Factors


def merge_loras(
    loras: Mapping[str, str | Path],
    weights: Mapping[str, float] | ModuleValue,
    *,
    operator: Operator = "cat",
    densities: Mapping[str, float] | ModuleValue | None = None,
    rank: int | Callable[[str], int] | None = None,
) -> dict[str, Factors]:
    """Merged factors by base tensor name.

    ``weights`` is one number per LoRA, or a function of (LoRA, tensor name) for weights by layer or to
    switch modules off (0). ``densities`` (default 1) is S's fraction likewise; ``rank`` is what "svd"
    reduces to, for all modules or by tensor name (default, or 0: the largest of the module's LoRAs). Raises
    ``UserError`` for LoRAs that carry whole tensors, store a matrix transposed, or do not fit together.
    """
    if not loras:
        raise UserError("a merge of LoRAs needs at least one LoRA")
    opened = {name: Checkpoint(path) for name, path in loras.items()}
    merged = {}
    for target, owners in _modules(opened).items():
        parts = []
        for name, module in owners.items():
            weight = float(weights(name, target) if callable(weights) else weights[name])
            if weight != 0:
                density = densities(name, target) if callable(densities) else (densities or {}).get(name, 1.0)
                a, b = opened[name][module.a].float(), opened[name][module.b].float()
                parts.append(Part(weight, module.scaling, Factors(keep_largest(a, density), b)))
        if parts:
            most = max(module.rank for module in owners.values())
            merged[target] = combine(parts, operator, (rank(target) if callable(rank) else rank) or most)
    return merged


def check_factors(loras: Mapping[str, str | Path]) -> None:
    """Raises ``UserError`` for LoRAs that are more than matrices of linear layers, or that do not fit together."""
    _modules({name: Checkpoint(path) for name, path in loras.items()})


def _modules(opened: Mapping[str, Checkpoint]) -> dict[str, dict[str, LoraModule]]:
    """The adapted modules of a pool: by base tensor name, then by LoRA."""
    modules: dict[str, dict[str, LoraModule]] = {}
    for name, checkpoint in opened.items():
        contents = read_lora(checkpoint.header)
        if contents.beyond_matrices is not None:
            raise UserError(
                f"LoRA {name!r} also changes biases or whole tensors ({contents.beyond_matrices}); "
                "fold it into the base instead"
            )
        for target, module in contents.modules.items():
            if not module.is_linear:
                raise UserError(
                    f"LoRA {name!r}: {target} is an embedding, a convolution or stored transposed; "
                    "fold it into the base instead"
                )
            modules.setdefault(target, {})[name] = module
    for target, owners in modules.items():
        if len({module.shape for module in owners.values()}) > 1:
            shapes = ", ".join(f"{name} {list(module.shape)}" for name, module in owners.items())
            raise UserError(f"{target} has different shapes in the pool: {shapes}")
    return modules


def keep_largest(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of largest magnitude, floor(density * size) of them, the others zero; not rescaled."""
    import torch

    kept = kept_count(density, matrix.numel())
    if kept == matrix.numel():
        return matrix
    mask = torch.zeros(matrix.numel(), dtype=torch.bool, device=matrix.device)
    order = matrix.abs().reshape(-1).argsort(descending=True, stable=True)
    mask[order[:kept]] = True
    return torch.where(mask.view(matrix.shape), matrix, 0.0)


def combine(parts: Sequence[Part], operator: Operator, rank: int) -> Factors:
    """The parts of one module as one pair of factors; ``rank`` is what "svd" keeps. Raises ``UserError``."""
    import torch

    pairs = [part.factors for part in parts]
    if operator == "factor":
        most = max(a.shape[0] for a, _ in pairs)
        a_sum = torch.zeros(most, pairs[0].a.shape[1], device=pairs[0].a.device)
        b_sum = torch.zeros(pairs[0].b.shape[0], most, device=pairs[0].b.device)
        for weight, scaling, (a, b) in parts:
            a_sum[: a.shape[0]] += weight * a
            b_sum[:, : b.shape[1]] += weight * scaling * b
        return Factors(a_sum, b_sum)
    joined = Factors(
        torch.cat([a for a, _ in pairs]),
        torch.cat([weight * scaling * b for weight, scaling, (_, b) in parts], dim=1),
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


def merge_lora_recipe(
    recipe: Recipe, loras: Mapping[str, str | Path], base: CheckpointHeader | None = None
) -> dict[str, Factors]:
    """The merged factors that a recipe says; ``loras`` has the folder of every expert, ``base`` the model they are on.

    A LoRA method combines factors in its own way; a sum of whole LoRAs (``shares``) is "cat", exactly. Coefficients
    are those of the tensors as the base stores them. Raises ``UserError`` for another method, and for what is no LoRA.
    """
    headers = {name: read_header(path) for name, path in loras.items()}
    for name, header in headers.items():
        if header.kind != "lora":
            raise UserError(f"expert {name!r} is a whole model, which no LoRA holds")
    method = METHODS[recipe.method]
    stored = {} if base is None else _stored_names(headers, base)

    def one(value: Callable[[str], float], name: str, target: str) -> float:
        found = {value(tensor) for tensor in stored.get((name, target), (target,))}
        if len(found) > 1:
            raise UserError(f"{target}: its parts have coefficients of their own, and one pair of factors has one")
        return found.pop()

    def weight(name: str, target: str) -> float:
        if method.lora is None:
            return one(lambda tensor: shares(recipe, tensor)[name], name, target)
        active = bool(one(lambda tensor: float(recipe.coefficient("active", name, tensor)), name, target))
        return active * one(lambda tensor: float(recipe.coefficient("weight", name, tensor)), name, target)

    if method.lora is None:
        return merge_loras(loras, weight)
    return merge_loras(
        loras,
        weight,
        operator=method.lora,
        densities=lambda name, target: one(
            lambda tensor: float(recipe.coefficient("density", name, tensor)), name, target
        ),
        rank=(lambda target: round(float(recipe.coefficient("rank", None, target)))) if method.lora == "svd" else None,
    )


def shares(recipe: Recipe, tensor: str) -> dict[str, float]:
    """What every expert's difference from the base is multiplied by at a tensor, where a merge is their sum.

    Raises ``UserError`` for a recipe that does more to them.
    """
    method = METHODS[recipe.method]
    if method.consensus != "none" and recipe.method != "linear":
        does = "elects signs" if method.consensus == "sign" else "is no sum of what its experts add to the base"
        raise UserError(f"{recipe.method} {does}; task_arithmetic and linear are sums, the lora_ methods are LoRAs")
    for parameter, whole in (("density", 1.0), ("gamma", 0.0)):
        dropping = method.parameter(parameter) is not None
        if dropping and any(recipe.coefficient(parameter, name, tensor) != whole for name in recipe.models):
            raise UserError(f"{recipe.method} drops entries of what a LoRA adds, which no factors can say")
    weights = {name: float(recipe.coefficient("weight", name, tensor)) for name in recipe.models}
    total = math.fsum(weights.values())
    is_divided = bool(recipe.coefficient("normalize", None, tensor)) and abs(total) >= _SMALLEST_SUM
    if recipe.method == "linear" and any(weights.values()) and not is_divided and abs(total - 1) > _SMALLEST_SUM:
        raise UserError(f"linear without normalize multiplies the base itself by {total:g}, the sum of the weights")
    scale = 1.0 if recipe.method == "linear" else float(recipe.coefficient("lambda", None, tensor))
    return {name: scale * value / (total if is_divided else 1.0) for name, value in weights.items()}


def _stored_names(
    headers: Mapping[str, CheckpointHeader], base: CheckpointHeader
) -> dict[tuple[str, str], tuple[str, ...]]:
    """By LoRA and module as the LoRA calls it: the tensors of the base that it changes."""
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, header in headers.items():
        called = {module.a: target for target, module in read_lora(header).modules.items()}
        for tensor, module in read_lora(header, base).modules.items():
            if module.a in called:
                key = (name, called[module.a])
                found[key] = (*found.get(key, ()), tensor)
    return found


def write_lora(merged: Mapping[str, Factors], out: str | Path, like: str | Path) -> Path:
    """Write merged factors as a PEFT folder; ``like`` is a LoRA of the pool (for its base model's name)."""
    if not merged:
        raise UserError("every module of the merged LoRA is switched off; give at least one weight other than 0")
    settings = read_header(like).config
    base = settings.get("base_model_name_or_path")
    return write_factors(merged, out, settings.get("task_type", "CAUSAL_LM"), base)


def write_factors(factors: Mapping[str, Factors], out: str | Path, task_type: str | None, base: str | None) -> Path:
    """Write factors by the names of the tensors that they change as a PEFT folder for the model called ``base``."""
    from safetensors.torch import save_file

    out = Path(out)
    names = {target: target.removesuffix(".weight") for target in factors}
    ranks = {names[target]: int(pair.a.shape[0]) for target, pair in factors.items()}
    most = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != most},
        "target_modules": sorted(ranks),
        "bias": "none",
        "inference_mode": True,
    }
    tensors = {}
    for target, pair in factors.items():
        tensors[f"base_model.model.{names[target]}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"base_model.model.{names[target]}.lora_B.weight"] = pair.b.contiguous()
    with complete_folder(out) as partial:
        save_file(tensors, partial / "adapter_model.safetensors")
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return out
