"""Weighted average of models (Model Soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mergefront.optimizer.errors import EvaluationError

if TYPE_CHECKING:
    import torch

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
