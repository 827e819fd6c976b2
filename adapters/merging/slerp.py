"""Spherical interpolation of two models, tensor by tensor (K. Shoemake 1985; mergekit 0.1.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NEARLY_PARALLEL = 0.9995
_SMALLEST_NORM = 1e-8


def merge(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, t: float) -> torch.Tensor:
    """sin((1-t) a)/sin(a) x_0 + sin(t a)/sin(a) x_1, where a is the angle between the flattened tensors.

    Tensors whose cosine exceeds 0.9995 in magnitude are interpolated linearly.
    """
    first, second = tensors
    cosine = cosine_of(first, second)
    if abs(cosine) > _NEARLY_PARALLEL:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle) * first + math.sin(t * angle) / math.sin(angle) * second


def cosine_of(first: torch.Tensor, second: torch.Tensor) -> float:
    """Cosine between two flattened tensors, in [-1, 1]; 0 when one of them vanishes."""
    norms = [float(tensor.norm()) for tensor in (first, second)]
    if min(norms) <= _SMALLEST_NORM:
        return 0.0
    dot = float(((first / norms[0]) * (second / norms[1])).sum())
    return max(-1.0, min(1.0, dot))
