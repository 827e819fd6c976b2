"""Merges of matrices by their spectra: task singular vectors and WUDI. What is slow is done once per pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

_RIDGE = 1e-6


class SingularVectors(NamedTuple):
    """Decorrelated left and right vectors of all experts side by side, and their singular values by expert."""

    left: torch.Tensor
    values: tuple[torch.Tensor, ...]
    right: torch.Tensor


def leading_singular_vectors(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> SingularVectors | None:
    """The rank / T leading singular triples of every task vector (TSV-M, arXiv 2412.00081, section 4).

    Concatenated U and V are replaced by their nearest matrices with orthonormal columns (Procrustes:
    U = P S Q^T gives P Q^T). None for tensors that are not matrices.
    """
    if base.dim() != 2:
        return None
    keep = max(1, min(base.shape) // len(tensors))
    parts = [torch.linalg.svd(tensor - base, full_matrices=False) for tensor in tensors]
    left = torch.cat([u[:, :keep] for u, _, _ in parts], dim=1)
    right = torch.cat([v[:keep] for _, _, v in parts], dim=0)
    return SingularVectors(_orthogonal(left), tuple(s[:keep] for _, s, _ in parts), _orthogonal(right))


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    product: torch.Tensor = u @ v
    return product


def tsv_m(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor,
    *,
    weight: Sequence[float],
    lambda_: float,
    prepared: SingularVectors | None,
) -> torch.Tensor:
    """base + lambda U diag(w_m S_m) V^T; vectors and scalars take the mean of the weighted task vectors."""
    if prepared is None:
        deltas = sum(factor * (tensor - base) for tensor, factor in zip(tensors, weight, strict=True))
        return base + lambda_ * deltas / len(tensors)
    values = torch.cat([factor * part for part, factor in zip(prepared.values, weight, strict=True)])
    return base + lambda_ * (prepared.left * values) @ prepared.right


def least_interference(tensors: Sequence[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """The task vector D that minimises sum_m |(D - d_m) d_m^T|^2 / |d_m|^2 (WUDI, arXiv 2503.08099, eq. 10).

    The paper descends by Adam from the sum of task vectors; the objective is quadratic, so its minimum
    nearest to that start is solved for here, with a ridge of 1e-6 of the mean eigenvalue. Tensors
    that are no matrices take the mean.
    """
    deltas = [tensor - base for tensor in tensors]
    if base.dim() != 2:
        return sum(deltas, torch.zeros_like(base)) / len(deltas)
    start = sum(deltas, torch.zeros_like(base))
    gram = torch.zeros(base.shape[1], base.shape[1], dtype=torch.float64, device=base.device)
    target = torch.zeros(base.shape, dtype=torch.float64, device=base.device)
    for delta in deltas:
        norm = float(delta.square().sum())
        if norm > 0:
            own = (delta.T @ delta).double() / norm
            gram += own
            target += (delta - start).double() @ own
    ridge = _RIDGE * float(gram.diagonal().mean())
    if ridge == 0:
        return start
    gram.diagonal().add_(ridge)
    solved: torch.Tensor = torch.linalg.solve(gram, target.T)
    return start + solved.T.float()


def wudi(
    tensors: Sequence[torch.Tensor], base: torch.Tensor, *, lambda_: float, prepared: torch.Tensor
) -> torch.Tensor:
    """base + lambda D, with D from ``least_interference``."""
    return base + lambda_ * prepared
