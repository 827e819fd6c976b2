"""The task-vector family for one tensor, formula by formula: every fast path is tested against it.

    delta_m = x_m - base;  delta_m = sparsify(delta_m);  wd_m = w_m * delta_m
    with sign consensus   majority = sign of sum_m wd_m (zero counts as +1); an entry takes part only
                          if sign(wd_m) is the majority; mix = sum of those; div = sum of their w_m, 0 -> 1
    without               mix = sum_m wd_m;  div = sum_m w_m, |.| < 1e-8 -> 1
    normalize             mix / div
    out = base + lambda * mix

In float32 this is what ``task_vectors`` computes. In the checkpoints' own dtype it is the arithmetic of mergekit 0.1.5,
rounding for rounding, which ``compat: mergekit`` asks for; random masks are this project's there too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from mergefront.adapters.merging.coefficients import Coefficients, TensorMerge
from mergefront.adapters.merging.task_vectors.fused import FusedBatch
from mergefront.adapters.merging.task_vectors.masks import LEVELS, entry_index, mask_key, random_levels
from mergefront.adapters.merging.tensor_pool import TensorPool
from mergefront.optimizer.errors import UserError

_SMALLEST_SUM = 1e-8
_SMALLEST_NORM = 1e-7


def merge_task_vectors(wanted: TensorMerge, deltas: Sequence[torch.Tensor], as_mergekit: bool = False) -> torch.Tensor:
    """The merged tensor in the dtype of ``deltas``, the experts' x_m - base in the order of the coefficients.

    ``as_mergekit`` sorts as mergekit does, which decides among entries of equal magnitude (otherwise the first win).
    """
    coefficients, base = wanted.coefficients, wanted.origin.to(deltas[0].dtype)
    weights = torch.tensor(coefficients.of_models("weight"), dtype=base.dtype, device=base.device)
    weights = weights.view(-1, *([1] * base.dim()))
    sparse = [sparsify(wanted, m, d, as_mergekit) for m, d in zip(coefficients.models, deltas, strict=True)]
    weighted = torch.stack(sparse) * weights
    if wanted.method.consensus == "sign":
        majority = torch.where(weighted.sum(dim=0) >= 0, 1, -1)
        agrees = weighted.sign() == majority
        mix, divisor = (weighted * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        mix, divisor = weighted.sum(dim=0), weights.sum(dim=0)
        divisor[divisor.abs() < _SMALLEST_SUM] = 1
    if coefficients.of_recipe("normalize"):
        mix = mix / divisor
    merged: torch.Tensor = base + coefficients.of_recipe("lambda") * mix
    return merged


def sparsify(wanted: TensorMerge, model: str, delta: torch.Tensor, as_mergekit: bool = False) -> torch.Tensor:
    """A task vector without the entries that the method drops, rescaled."""
    density = float(wanted.coefficients.of_model(model).get("density", 1.0))
    if density >= 1:
        return delta
    mask = _kept(wanted, model, delta, density, as_mergekit).view(delta.shape)
    if wanted.method.sparsifier == "magnitude" and mask.all():
        return delta  # of a tensor of one entry, say: what is not dropped needs no rescaling
    kept = delta * mask
    rescale = wanted.coefficients.of_recipe("rescale")
    if rescale == "density" and density > 0:
        kept = kept / density
    elif rescale == "l1":
        before, after = delta.abs().sum(), kept.abs().sum()
        if min(before, after) >= _SMALLEST_NORM:
            kept = kept * (before / after)
    return kept


def _kept(wanted: TensorMerge, model: str, delta: torch.Tensor, density: float, as_mergekit: bool) -> torch.Tensor:
    """Which entries are kept (bool, flat)."""
    values, size = wanted.coefficients.of_model(model), delta.numel()
    magnitude = delta.abs().float() if delta.device.type == "cpu" else delta.abs()
    if wanted.method.sparsifier in ("magnitude", "breadcrumbs"):
        # At least one entry at a positive density, as mergekit 0.1.5 does for magnitude alone.
        kept, top, upwards = max(1, int(density * size)) if density > 0 else 0, 0, False
        if wanted.method.sparsifier == "breadcrumbs":
            kept, upwards = int(density * size), as_mergekit
            top = min(int(values["gamma"] * size), size - kept)
        order = magnitude.flatten().argsort(descending=not upwards, stable=not as_mergekit)
        order = order.flip(0) if upwards else order
        mask = torch.zeros(size, dtype=torch.bool, device=delta.device)
        mask[order[top : top + kept]] = True
        return mask
    threshold: float | torch.Tensor = max(1, round(density * LEVELS)) if density > 0 else 0
    if wanted.method.sparsifier == "rank" and density > 0:
        rows = magnitude if delta.dim() > 1 else magnitude.view(1, -1)
        ranks = rows.argsort(dim=1, stable=True).argsort(dim=1, stable=True).flatten().float()
        epsilon = min(values["epsilon"], 0.999 * density, 0.999 * (1 - density)) if rows.shape[1] > 1 else 0.0
        threshold = LEVELS * (density - epsilon + 2 * epsilon / max(rows.shape[1] - 1, 1) * ranks)
    keys = mask_key(wanted.coefficients.seed, wanted.name, model)
    return random_levels(entry_index(0, size, delta.device), *keys).float() < threshold


class MergekitMerger:
    """The family on a pool in the tensors' own dtype, as mergekit 0.1.5 computes (``compat: mergekit``)."""

    def __init__(self, pool: TensorPool) -> None:
        self._pool = pool

    def reads(self, coefficients: Coefficients) -> Sequence[str]:
        """See ``engine.Merger``."""
        return coefficients.models

    def merge(self, wanted: TensorMerge, out: torch.Tensor, batch: FusedBatch) -> torch.Tensor:
        """Merge one tensor into ``out`` (see ``engine.Merger``). Raises ``UserError`` for what mergekit cannot do."""
        base, coefficients = wanted.origin, wanted.coefficients
        densities = dict(coefficients.per_model).get("density", ())
        if any(float(d) < 1 for d in densities) and coefficients.of_recipe("rescale") == "density":
            raise UserError("compat: mergekit has no rescale: density; use l1 or none")
        tensors = []
        for model in coefficients.models:
            entry = self._pool.entry(wanted.name, model)
            tensors.append(base if entry is None else entry.tensor + base if entry.is_delta else entry.tensor)
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), base.dtype)
        merged = merge_task_vectors(wanted, [x.to(dtype) - base.to(dtype) for x in tensors], as_mergekit=True)
        out.copy_(merged)
        return (merged.float() - base.float()).abs().sum()
