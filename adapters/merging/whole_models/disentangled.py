"""WIDEN (arXiv 2408.03092): magnitude and direction of weights, weighed by how far each expert moved them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SMALLEST_NORM = 1e-8


def widen(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    above_average_ratio: float,
    calibration: float,
    lambda_: float,
) -> torch.Tensor:
    """base + lambda sum_m s_m (x_m - base), with a score s_m per column (per entry for vectors).

    Per expert, columns are ranked by the change of their norm and by 1 - cosine to the base's column; a
    softmax over experts of the ranks (scaled to [0, 1]) gives two scores, whose mean is s_m. A column
    that moved more than ``above_average_ratio`` times its expert's average scores ``calibration``
    instead: this is what lets a continued-pre-trained expert, which moved far, stand beside
    fine-tuned ones.
    """
    deltas = torch.stack([tensor - base for tensor in tensors])
    if base.dim() < 2:
        changes = deltas.abs().reshape(len(tensors), -1)
        score = _scores(changes, above_average_ratio, calibration).reshape(deltas.shape)
        return base + lambda_ * (score * deltas).sum(dim=0)
    flat = base.reshape(base.shape[0], -1)
    models = torch.stack([tensor.reshape(flat.shape) for tensor in tensors])
    norm, norms = flat.norm(dim=0), models.norm(dim=1)
    cosine = (models * flat).sum(dim=1) / (norms * norm).clamp(min=_SMALLEST_NORM)
    magnitude = _scores((norms - norm).abs(), above_average_ratio, calibration)
    direction = _scores((1 - cosine).clamp(min=0), above_average_ratio, calibration)
    score = ((magnitude + direction) / 2).unsqueeze(1)
    merged = (score * (models - flat)).sum(dim=0)
    return base + lambda_ * merged.reshape(base.shape)


def _scores(changes: torch.Tensor, ratio: float, calibration: float) -> torch.Tensor:
    """Scores in [0, 1] from changes (experts x columns)."""
    ranks = changes.argsort(dim=1, stable=True).argsort(dim=1, stable=True).float() / max(changes.shape[1], 1)
    scores = torch.softmax(ranks, dim=0)
    return torch.where(changes > ratio * changes.mean(dim=1, keepdim=True), calibration, scores)
