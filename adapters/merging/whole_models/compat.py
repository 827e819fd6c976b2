"""``compat: mergekit``: the arithmetic of mergekit 0.1.5 in the checkpoints' own dtype, rounding for rounding.

mergekit computes most methods in the dtype that it reads (bfloat16, say), where this project
accumulates in float32 and casts once. The difference matters only to reproduce somebody's merge bit
for bit. Methods that drop at random take this project's masks here too, so they agree only in
distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergefront.adapters.merging.task_vectors.masks import LEVELS, entry_index, keep_threshold, mask_key, random_levels
from mergefront.adapters.merging.task_vectors.ranks import row_ranks
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import MergeMethod

if TYPE_CHECKING:
    import torch

# Methods whose kernels mergekit itself runs in float32.
IN_FLOAT32 = frozenset({"linear", "slerp", "metrics_weighted", "tsv_m", "wudi", "widen"})
_SMALLEST_NORM = 1e-7
_SMALLEST_SUM = 1e-8


def merge_task_vectors(
    method: MergeMethod,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    parameters: Mapping[str, Any],
    place: tuple[str, Sequence[str], int],
) -> torch.Tensor:
    """The task-vector family in the tensors' dtype. ``place``: tensor name, experts, seed (for masks)."""
    import torch

    dtype = base.dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    base = base.to(dtype)
    deltas = torch.stack(
        [_sparsify(method, tensor.to(dtype) - base, m, parameters, place) for m, tensor in enumerate(tensors)]
    )
    weights = torch.tensor(parameters["weight"], dtype=dtype, device=base.device)
    weights = weights.view(-1, *([1] * base.dim()))
    deltas = deltas * weights
    if method.consensus == "sign":
        majority = (deltas.sum(dim=0) >= 0).to(dtype) * 2 - 1
        agrees = deltas.sign() == majority
        mixed, divisor = (deltas * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        mixed, divisor = deltas.sum(dim=0), weights.sum(dim=0)
        divisor[divisor.abs() < _SMALLEST_SUM] = 1
    if parameters["normalize"]:
        mixed = mixed / divisor
    if parameters["lambda_"] != 1:
        mixed = mixed * parameters["lambda_"]
    return base + mixed


def linear(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, weight: Sequence[float], normalize: bool
) -> torch.Tensor:
    """Weighted average by fused multiply-add in float32, divided by the float32 sum of weights."""
    import torch

    weights = torch.tensor(weight, dtype=torch.float32, device=tensors[0].device)
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, factor in zip(tensors, weights, strict=True):
        total.addcmul_(tensor, factor.view([1] * tensor.dim()))
    return total / weights.sum() if normalize else total


def _sparsify(
    method: MergeMethod,
    delta: torch.Tensor,
    m: int,
    parameters: Mapping[str, Any],
    place: tuple[str, Sequence[str], int],
) -> torch.Tensor:
    import torch

    density = parameters["density"][m] if "density" in parameters else 1.0
    if method.sparsifier == "none" or density >= 1:
        return delta
    size = delta.numel()
    if method.sparsifier in ("magnitude", "breadcrumbs"):
        magnitude = delta.abs().reshape(-1)
        magnitude = magnitude.float() if magnitude.device.type == "cpu" else magnitude
        if method.sparsifier == "magnitude":
            kept = 0 if density <= 0 else max(1, int(density * size))
            indices = torch.argsort(magnitude, descending=True)[:kept]
        else:
            kept = int(density * size)
            bottom = max(0, size - kept - int(parameters["gamma"][m] * size))
            indices = torch.sort(magnitude, descending=False).indices[bottom : bottom + kept]
        mask = torch.zeros(size, dtype=delta.dtype, device=delta.device)
        mask[indices] = 1
        mask = mask.view(delta.shape)
    else:
        name, experts, seed = place
        levels = random_levels(entry_index(0, size, delta.device), *mask_key(seed, name, experts[m])).float()
        threshold: Any = keep_threshold(density)
        if method.sparsifier == "rank" and density > 0:
            epsilon = min(parameters["epsilon"][m], 0.999 * density, 0.999 * (1 - density))
            row = delta.shape[1] if delta.dim() > 1 else size
            start, slope = (density - epsilon, 2 * epsilon / (row - 1)) if row > 1 else (density, 0.0)
            threshold = LEVELS * (start + slope * row_ranks(delta.float()).float())
        mask = (levels < threshold).to(delta.dtype).view(delta.shape)
    kept_part = delta * mask
    if parameters["rescale"] == "none":
        return kept_part
    if parameters["rescale"] == "density":
        raise UserError("compat: mergekit has no rescale: density; use l1 or none")
    before, after = delta.abs().sum(), kept_part.abs().sum()
    if before < _SMALLEST_NORM or after < _SMALLEST_NORM:
        return kept_part
    return kept_part * (before / after)
