"""Merges of matrices by their spectra: task singular vectors, WUDI, isotropic merging, subspace boosting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

_RIDGE = 1e-6


class SingularVectors(NamedTuple):
    """Decorrelated left and right vectors of all experts side by side, and their singular values by expert."""

    left: torch.Tensor
    values: tuple[torch.Tensor, ...]
    right: torch.Tensor


def leading_singular_vectors(
    deltas: Sequence[torch.Tensor], shape: torch.Size, *, outlier_aware: bool, adaptive_rank: bool
) -> SingularVectors:
    """The rank / T leading singular triples of every task vector (TSV-M, arXiv 2412.00081, section 4).

    Concatenated U and V are replaced by their nearest matrices with orthonormal columns (Procrustes:
    U = P S Q^T gives P Q^T). ``shape`` is the merged matrix', of which the task vectors may be the core. Where an
    expert trained fewer directions, as a LoRA does, the others are arbitrary (see ``_decorrelated``). ``outlier_aware``
    multiplies an expert's singular values by its share in all experts' outliers, ``adaptive_rank`` keeps less of a
    sparse task vector: both after what the abstract of R-TSVM says (arXiv 2502.06876); the formulas are ours.
    """
    keep = max(1, min(shape) // len(deltas))
    kept = [max(1, round(keep * _density(delta))) if adaptive_rank else keep for delta in deltas]
    parts = [spectrum(delta) for delta in deltas]
    left = [part.left[:, :most] for part, most in zip(parts, kept, strict=True)]
    right = [part.right[:most].T for part, most in zip(parts, kept, strict=True)]
    values = [part.values[:most] for part, most in zip(parts, kept, strict=True)]
    if outlier_aware:
        outliers = torch.stack([_outliers(delta) for delta in deltas])
        shares = len(deltas) * outliers / outliers.sum() if outliers.sum() > 0 else torch.ones_like(outliers)
        values = [share * part for share, part in zip(shares, values, strict=True)]
    return SingularVectors(_decorrelated(left, kept, shape[0]), tuple(values), _decorrelated(right, kept, shape[1]).T)


def _decorrelated(vectors: Sequence[torch.Tensor], kept: Sequence[int], size: int) -> torch.Tensor:
    """All experts' vectors side by side (of a space of ``size`` dimensions), made orthogonal to each other.

    The nearest matrix with orthonormal columns is (U U^T)^(-1/2) U. An expert with fewer vectors than it may keep has
    arbitrary others in U, orthogonal to its own; here U U^T has their expectation over all ways to draw them, so that
    no drawn ones decide what a merge is, and vectors that meet no other expert's keep their length.
    """
    every = torch.cat(list(vectors), dim=1)
    ranks = [part.shape[1] for part in vectors]
    shares = [(most - rank) / (size - rank) if most > rank else 0.0 for most, rank in zip(kept, ranks, strict=True)]
    if not any(shares):
        return _orthogonal(every)
    second = sum(shares) * torch.eye(len(every), dtype=torch.float64, device=every.device)
    for part, share in zip(vectors, shares, strict=True):
        second += (1 - share) * (part @ part.T).double()
    found, directions = torch.linalg.eigh(second)
    lengths = torch.cat([every.new_full((n,), sum(shares) + 1 - one) for n, one in zip(ranks, shares, strict=True)])
    made: torch.Tensor = (directions * found.rsqrt()) @ (directions.T @ (every * lengths.sqrt()).double())
    return made.to(every.dtype)


def _density(delta: torch.Tensor) -> float:
    """How many entries change, as a fraction: |d|_1^2 / (n |d|_2^2), relative to normally distributed entries."""
    energy = float(delta.square().mean())
    return min(1.0, math.pi / 2 * float(delta.abs().mean()) ** 2 / energy) if energy > 0 else 0.0


def _outliers(delta: torch.Tensor) -> torch.Tensor:
    """The sum of the magnitudes that are more than three standard deviations above their mean."""
    sizes = delta.abs()
    return torch.where(sizes > sizes.mean() + 3 * sizes.std(correction=0), sizes, 0.0).sum()


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    product: torch.Tensor = u @ v
    return product


def tsv_m(
    _deltas: Sequence[torch.Tensor], *, weight: Sequence[float], prepared: SingularVectors, **_of_preparation: bool
) -> torch.Tensor:
    """U diag(w_m S_m) V^T."""
    values = torch.cat([factor * part for part, factor in zip(prepared.values, weight, strict=True)])
    merged: torch.Tensor = (prepared.left * values) @ prepared.right
    return merged


def least_interference(deltas: Sequence[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """The task vector D that minimises sum_m |(D - d_m) d_m^T|^2 / |d_m|^2 (WUDI, arXiv 2503.08099, eq. 10).

    The paper descends by Adam from the sum of task vectors; the objective is quadratic, so its minimum
    nearest to that start is solved for here, with a ridge of 1e-6 of the mean eigenvalue of a matrix of ``shape``, of
    which the task vectors may be the core. In double precision: errors of single precision are as large as the ridge,
    and would fill the directions that no expert trained.
    """
    start = torch.zeros_like(deltas[0], dtype=torch.float64)
    for delta in deltas:
        start += delta
    gram = torch.zeros(start.shape[1], start.shape[1], dtype=start.dtype, device=start.device)
    target = torch.zeros_like(start)
    for delta in deltas:
        norm = float(delta.square().sum())
        if norm > 0:
            wide = delta.double()
            own = wide.T @ wide / norm
            gram += own
            target += (wide - start) @ own
    ridge = _RIDGE * float(gram.diagonal().sum()) / shape[1]
    if ridge > 0:
        gram.diagonal().add_(ridge)
        start += torch.linalg.solve(gram, target.T).T
    return start.float()


def wudi(_deltas: Sequence[torch.Tensor], *, prepared: torch.Tensor) -> torch.Tensor:
    """D of ``least_interference``."""
    return prepared


class Core(NamedTuple):
    """Low-rank matrices in the space that their factors span: each is left delta right^T, with orthonormal columns."""

    left: torch.Tensor
    right: torch.Tensor
    deltas: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Core:
        """Of the products of each b (m x r) and a (r x n)."""
        left, rows = torch.linalg.qr(torch.cat([b for b, _ in factors], dim=1))
        right, columns = torch.linalg.qr(torch.cat([a for _, a in factors]).T)
        ranks = [len(a) for _, a in factors]
        pairs = zip(rows.split(ranks, dim=1), columns.split(ranks, dim=1), strict=True)
        return cls(left, right, tuple(row @ column.T for row, column in pairs))


class Spectrum(NamedTuple):
    """left diag(values) right, without the directions whose singular value is zero: left (m, r), right (r, n)."""

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor

    def with_values(self, values: torch.Tensor) -> torch.Tensor:
        """The matrix with other singular values."""
        product: torch.Tensor = (self.left * values) @ self.right
        return product


def spectrum(matrix: torch.Tensor) -> Spectrum:
    """Singular triples up to the numerical rank: values above max(m, n) eps times the largest.

    The others' vectors are arbitrary. Where LoRAs are summed most of them are, and to raise them would be noise.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > values[0] * max(matrix.shape) * torch.finfo(matrix.dtype).eps).sum())
    return Spectrum(left[:, :rank], values[:rank], right[:rank])


def isotropic(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """U (mean(S) I) V^T of the sum U S V^T (Iso-C, arXiv 2502.04959, eq. 7); the mean is over the sum's rank."""
    total = spectrum(_sum(deltas))
    return total.with_values(total.values.mean().nan_to_num().expand_as(total.values))


def isotropic_cts(deltas: Sequence[torch.Tensor], *, common: float) -> torch.Tensor:
    """Common and task-specific directions with one singular value (Iso-CTS, arXiv 2502.04959, section 4.2).

    Of the r directions of the sum the first k, about ``common`` r, are kept, so that T experts divide the rest evenly.
    Each expert adds the leading (r - k) / T directions of what is left of it outside the kept left vectors. U and V
    of all side by side are made orthogonal, and every singular value becomes the mean of theirs.
    """
    total = spectrum(_sum(deltas))
    rank = len(total.values)
    changed = [delta for delta in deltas if delta.any()]
    own = round((rank - int(rank * common)) / max(len(changed), 1))
    kept = rank - own * len(changed)
    if own == 0 or kept < 0:
        return isotropic(deltas)
    left = total.left[:, :kept]
    parts = [Spectrum(left, total.values[:kept], total.right[:kept])]
    for delta in changed:
        found = spectrum(delta - left @ (left.T @ delta))
        parts.append(Spectrum(found.left[:, :own], found.values[:own], found.right[:own]))
    mean = torch.cat([part.values for part in parts]).mean()
    every_left, every_right = torch.cat([p.left for p in parts], dim=1), torch.cat([p.right for p in parts])
    return mean * _orthogonal(every_left) @ _orthogonal(every_right)


def subspace_boosting(deltas: Sequence[torch.Tensor], *, beta: float) -> torch.Tensor:
    """The sum with its singular values held at or above one of them (arXiv 2506.16506, section 4).

    That is the first at which the cumulative sum, from the largest down, reaches ``beta`` of the whole: beta 0 makes
    all equal to the largest, beta 1 changes nothing.
    """
    total = spectrum(_sum(deltas))
    if len(total.values) == 0:
        return torch.zeros_like(deltas[0])
    reached = total.values.cumsum(0) >= beta * total.values.sum()
    least = total.values[min(int((~reached).sum()), len(reached) - 1)]
    return total.with_values(total.values.clamp(min=float(least)))


def _sum(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    return total
