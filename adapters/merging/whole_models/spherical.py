"""Merges on the sphere: slerp, nuslerp, multislerp and the Karcher mean (semantics of mergekit 0.1.5)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from mergefront.optimizer.errors import EvaluationError

_NEARLY_PARALLEL = 0.9995
_SMALLEST_NORM = 1e-8
_SMALLEST_ROW_NORM = 1e-7


def slerp(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, t: float) -> torch.Tensor:
    """sin((1-t) a)/sin(a) x_0 + sin(t a)/sin(a) x_1, where a is the angle between the flattened tensors.

    Tensors whose cosine exceeds 0.9995 in magnitude are interpolated linearly.
    """
    first, second = tensors
    cosine = _cosine(first, second)
    if abs(cosine) > _NEARLY_PARALLEL:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle) * first + math.sin(t * angle) / math.sin(angle) * second


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    norms = [norm if norm > _SMALLEST_NORM else 1.0 for norm in (float(first.norm()), float(second.norm()))]
    dot = float(((first / norms[0]) * (second / norms[1])).sum())
    return max(-1.0, min(1.0, dot))


def nuslerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    nuslerp_row_wise: bool,
    nuslerp_flatten: bool,
) -> torch.Tensor:
    """Slerp at t = w_1 / (w_0 + w_1), of task vectors where there is a base; t is 1/2 for a zero sum."""
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    first, second = (tensor if base is None else tensor - base for tensor in tensors)
    shape = first.shape
    if nuslerp_flatten:
        first, second = first.reshape(-1), second.reshape(-1)
    elif nuslerp_row_wise:
        first, second = first.transpose(0, -1), second.transpose(0, -1)
    merged = _interpolate(first, second, t)
    if nuslerp_row_wise and not nuslerp_flatten:
        merged = merged.transpose(0, -1)
    merged = merged.reshape(shape)
    return merged if base is None else base + merged


def _interpolate(first: torch.Tensor, second: torch.Tensor, t: float) -> torch.Tensor:
    """Slerp along the last dimension; rows that are parallel are interpolated linearly."""
    units = [x / x.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST_ROW_NORM) for x in (first, second)]
    cosine = (units[0] * units[1]).sum(dim=-1, keepdim=True).clamp(-1, 1)
    parallel = (1 - cosine.square()) <= _SMALLEST_NORM**2
    angle = torch.acos(torch.where(parallel, 0.0, cosine))
    curved = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / torch.sin(angle)
    return torch.where(parallel, (1 - t) * first + t * second, curved)


def multislerp(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    *,
    weight: Sequence[float],
    normalize_weights: bool,
    eps: float,
) -> torch.Tensor:
    """Weighted mean in the tangent space at the models' normalised mean, mapped back, at their mean norm.

    Raises ``EvaluationError`` where more than two models cancel out.
    """
    if len(tensors) == 1:
        return tensors[0]
    stacked = torch.stack([tensor if base is None else tensor - base for tensor in tensors])
    flat = stacked.view(len(tensors), -1)
    weights = torch.tensor(weight, dtype=flat.dtype, device=flat.device)
    if normalize_weights:
        if abs(float(weights.sum())) < _SMALLEST_NORM:
            raise EvaluationError(f"multislerp: the weights {list(weight)} sum to zero", kind="weights")
        weights = weights / weights.sum()
    norms = flat.norm(dim=-1, keepdim=True)
    if float(norms.max()) == 0:
        return tensors[0] if base is None else base
    units = flat / (norms + eps)
    mean = (units * weights.view(-1, 1)).sum(0)
    length = mean.norm()
    if length < eps:
        if len(tensors) > 2:
            raise EvaluationError(
                "multislerp: the models cancel out with these weights; change a weight", kind="weights"
            )
        merged = (flat * weights.view(-1, 1)).sum(0)
    else:
        mean = mean / length
        tangents = units - (units * mean).sum(-1, keepdim=True) * mean
        tangent = (tangents * weights.view(-1, 1)).sum(0)
        step = tangent.norm() + eps
        merged = (mean * torch.cos(step) + tangent * (torch.sin(step) / step)) * (norms.squeeze(-1) * weights).sum()
    merged = merged.view(stacked.shape[1:])
    return merged if base is None else base + merged


def karcher(tensors: Sequence[torch.Tensor], base: torch.Tensor | None, *, max_iter: float, tol: float) -> torch.Tensor:
    """Karcher mean of the directions by fixed-point iteration, at the mean norm; zero tensors lend no direction."""
    if len(tensors) == 1:
        return tensors[0]
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    tensors = [tensor.to(dtype) for tensor in tensors]
    # Norms are float32 in every dtype, directions and dot products in the tensors' own, as in mergekit.
    norms = [tensor.float().norm() for tensor in tensors]
    share = 1.0 / len(tensors)
    units = [(tensor / norm).to(tensor.dtype) for tensor, norm in zip(tensors, norms, strict=True) if float(norm) > tol]
    if not units:
        return torch.zeros_like(tensors[0])
    each = 1.0 / len(units)
    mean = torch.zeros_like(units[0])
    for unit in units:
        mean = mean + each * unit
    length = mean.float().norm()
    mean = units[0].clone() if float(length) < tol else (mean / length).to(mean.dtype)
    for _ in range(int(max_iter)):
        tangent = torch.zeros_like(mean)
        for unit in units:
            dot = torch.clamp(torch.dot(mean.reshape(-1), unit.reshape(-1)), -1.0, 1.0)
            angle = torch.arccos(dot)
            if float(angle) >= tol:
                tangent = tangent + each * (angle / torch.sin(angle)) * (unit - dot * mean)
        step = tangent.float().norm()
        if float(step) < tol:
            break
        mean = (torch.cos(step) * mean + torch.sin(step) * (tangent / step)).to(mean.dtype)
        length = mean.float().norm()
        if float(length) > tol:
            mean = (mean / length).to(mean.dtype)
    merged: torch.Tensor = sum(share * norm for norm in norms) * mean
    return merged
