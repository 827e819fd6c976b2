"""Merges that look at where and how the experts' task vectors agree: model_stock, sce, ram."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SMALLEST_NORM = 1e-6


def model_stock(tensors: Sequence[torch.Tensor], base: torch.Tensor, *, filter_wise: bool) -> torch.Tensor:
    """t * mean(x) + (1 - t) * base with t = N c / (1 + (N - 1) c), c the mean pairwise cosine (eq. 6).

    Where the denominator vanishes there is no estimate and the base stays.
    """
    count = len(tensors)
    origin = base.reshape(-1) if not filter_wise else base if base.dim() > 1 else base.unsqueeze(0)
    deltas = [tensor.reshape(origin.shape) - origin for tensor in tensors]
    cosines = []
    for i, first in enumerate(deltas):
        for second in deltas[i + 1 :]:
            product = (first.norm(dim=-1) * second.norm(dim=-1)).clamp(min=_SMALLEST_NORM)
            cosines.append(((first * second).sum(dim=-1) / product).clamp(-1, 1))
    cosine = torch.stack(cosines).mean(dim=0).unsqueeze(-1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < _SMALLEST_NORM
    ratio = torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, denominator))
    average = sum(tensor.reshape(origin.shape) for tensor in tensors) / count
    return (ratio * average + (1 - ratio) * origin).reshape(base.shape)


def sce(tensors: Sequence[torch.Tensor], base: torch.Tensor, *, select_topk: float) -> torch.Tensor:
    """Keep the entries of largest variance over experts, weigh experts by their mean square, drop the minority sign.

    floor(select_topk * entries with non-zero variance) entries are kept.
    """
    deltas = torch.stack([tensor - base for tensor in tensors])
    if select_topk < 1:
        variance = deltas.var(dim=0, unbiased=False)
        kept = int(int(torch.count_nonzero(variance)) * select_topk)
        mask = torch.zeros_like(variance)
        if kept:
            mask.view(-1)[torch.topk(variance.reshape(-1), kept).indices] = 1
        deltas = deltas * mask
    majority = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    energy = deltas.square().reshape(len(tensors), -1).mean(dim=1)
    total = float(energy.sum())
    weights = torch.full_like(energy, 1 / len(tensors)) if abs(total) < 1e-6 else energy / total
    weights = weights.view(-1, *([1] * base.dim())) * (deltas.sign() == majority)
    return base + (deltas * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1e-6)


def ram(tensors: Sequence[torch.Tensor], base: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Changes of one expert alone are added, those of several are averaged over these experts."""
    deltas, changed, count = _changes(tensors, base, epsilon)
    return base + ((deltas * changed) / count.clamp(min=1)).sum(dim=0)


def ram_plus(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, *, r: float, alpha: float, epsilon: float
) -> torch.Tensor:
    """``ram`` with unique changes scaled by 1 + r * min(shared / unique, alpha), counted per tensor and expert."""
    deltas, changed, count = _changes(tensors, base, epsilon)
    entries = tuple(range(1, deltas.dim()))
    unique = changed & (count == 1)
    shared = changed & (count > 1)
    ratio = shared.sum(dim=entries) / unique.sum(dim=entries).clamp(min=epsilon or 1e-9) if entries else shared / 1.0
    factor = (1 + r * ratio.clamp(0, alpha)).view(-1, *([1] * base.dim()))
    merged = torch.where(unique, deltas * factor, torch.where(shared, deltas / count.clamp(min=1), 0.0))
    return base + merged.sum(dim=0)


def _changes(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    deltas = torch.stack([tensor - base for tensor in tensors])
    changed = deltas.abs() > epsilon
    return deltas, changed, changed.sum(dim=0, keepdim=True)
