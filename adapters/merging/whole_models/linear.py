"""Weighted average of models (Model Soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mergefront.optimizer.errors import EvaluationError

_SMALLEST_SUM = 1e-8


def merge(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, weight: Sequence[float], normalize: bool
) -> torch.Tensor:
    """sum_m w_m x_m, divided by sum_m w_m when ``normalize``.

    All weights zero give the base, where there is one. Weights that cancel out to a sum of zero
    have no average: ``EvaluationError``.
    """
    if base is not None and not any(weight):
        return base
    total = weight[0] * tensors[0]
    for tensor, factor in zip(tensors[1:], weight[1:], strict=True):
        total = total + factor * tensor
    if not normalize:
        return total
    divisor = sum(weight)
    if abs(divisor) < _SMALLEST_SUM:
        raise EvaluationError(
            f"linear with normalize: the weights {list(weight)} sum to zero; give weights with a positive sum "
            "or set normalize to false",
            kind="weights",
        )
    return total / divisor


def merge_as_mergekit(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, weight: Sequence[float], normalize: bool
) -> torch.Tensor:
    """The same rounding for rounding as mergekit 0.1.5: fused multiply-add, divided by the float32 sum of weights."""
    weights = torch.tensor(weight, dtype=torch.float32, device=tensors[0].device)
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, factor in zip(tensors, weights, strict=True):
        total.addcmul_(tensor, factor.view([1] * tensor.dim()))
    return total / weights.sum() if normalize else total


def nearswap(tensors: Sequence[torch.Tensor], base: torch.Tensor, *, t: float) -> torch.Tensor:
    """Every entry moves from the base towards the expert by min(|difference|, t), as in mergekit 0.1.5."""
    share = (t / (base - tensors[0]).abs().clamp(min=1e-6)).clamp(0, 1)
    return share * tensors[0] + (1 - share) * base


def passthrough(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, scale: Sequence[float]) -> torch.Tensor:
    """The model's own tensor, multiplied by ``scale``."""
    return tensors[0] if scale[0] == 1 else tensors[0] * scale[0]


def metrics_weighted(
    tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, metric: Sequence[float], penalty: float
) -> torch.Tensor:
    """Average with w_m proportional to metric_m ** penalty (arXiv 2504.18580; give 1 / loss for losses)."""
    best = max(metric)
    if best <= 0:
        raise EvaluationError(f"metrics_weighted: no metric in {list(metric)} is positive", kind="weights")
    return merge(tensors, None, weight=[(value / best) ** penalty for value in metric], normalize=True)
