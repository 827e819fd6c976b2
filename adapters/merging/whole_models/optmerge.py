"""OptMerge (arXiv 2505.19892): least interference between the leading singular directions of the experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mergefront.adapters.merging.whole_models.spectral import spectrum

_LEARNING_RATE, _MOMENTUM = 1e-4, 0.9


class Directions(NamedTuple):
    """Of each expert S V^T / |d| of its task vector d = U S V^T, one row for each direction, the leading ones first.

    ``share`` is how many of them an expert has a right to: min(m, n) / k of a matrix m x n and k experts.
    """

    rows: tuple[torch.Tensor, ...]
    share: int


def directions(deltas: Sequence[torch.Tensor], shape: torch.Size) -> Directions:
    """What no coefficient changes; ``shape`` is the merged matrix', of which the task vectors may be the core."""
    rows = []
    for delta in deltas:
        found = spectrum(delta)
        rows.append(found.values.unsqueeze(1) * found.right / delta.norm().clamp(min=torch.finfo(delta.dtype).tiny))
    return Directions(tuple(rows), max(1, min(shape) // len(deltas)))


def optmerge(deltas: Sequence[torch.Tensor], *, rank: float, steps: float, prepared: Directions) -> torch.Tensor:
    """The task vector D that SGD finds in ``steps`` steps from mean(d_i) for sum_i |(D - t_i) p_i^T|^2 / |d_i|^2.

    t_i = U_r S_r V_r^T are the first ``rank`` directions of d_i (0: its share), p_i = S_r V_r^T; the learning rate is
    1e-4, the momentum 0.9. With the rows of all p_i / |d_i| in P, the residuals (mean - t_i) p_i^T / |d_i| in E and
    K = P P^T, every step is mean - E h(K) P with h a polynomial of the eigenvalues. So the steps are walked by the
    eigenvalues instead of by the matrix, and the result is that of the steps.
    """
    mean = torch.stack(list(deltas)).mean(dim=0)
    most = max(1, round(rank)) if rank else prepared.share
    kept = [rows[:most] for rows in prepared.rows]
    every = torch.cat(kept)
    if len(every) == 0:
        return mean
    residuals = torch.cat([(mean - delta) @ rows.T for delta, rows in zip(deltas, kept, strict=True)], dim=1)
    values, vectors = torch.linalg.eigh((every @ every.T).double())
    walked = (vectors * _walked(values, round(steps))).to(mean.dtype)
    found: torch.Tensor = mean - (residuals @ walked) @ (vectors.to(mean.dtype).T @ every)
    return found


def _walked(eigenvalues: torch.Tensor, steps: int) -> torch.Tensor:
    """h of every eigenvalue x: v <- momentum v + 2 (1 - x h), h <- h + rate v, from zero."""
    step = torch.zeros(len(eigenvalues), 3, 3, dtype=eigenvalues.dtype, device=eigenvalues.device)
    rate = torch.tensor([1.0, _LEARNING_RATE], dtype=step.dtype, device=step.device)
    step[:, :2, 0] = _MOMENTUM * rate
    step[:, :2, 1] = -2 * eigenvalues.unsqueeze(1) * rate
    step[:, :2, 2] = 2 * rate
    step[:, 1, 1] += 1
    step[:, 2, 2] = 1
    after: torch.Tensor = torch.linalg.matrix_power(step, steps)
    return after[:, 1, 2]
