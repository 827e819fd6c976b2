"""Embeddings of tokens that a model lacks, from another model that has them: orthogonal matching pursuit.

Goddard and Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
arXiv 2506.06607: a new token's embedding in the donor is written as a sparse combination of the donor's embeddings of
shared tokens; the same combination of the model's own embeddings of those tokens is the new token's embedding there.
Embedding and head are transplanted each by its own combinations. Tokens of numbers that two tokenizers cut differently
suffer most (the paper's section on arithmetic).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SPARSITY = 64
"""Shared tokens in a combination (the paper's k)."""
_TOKENS_AT_ONCE = 256
_DEPENDENT = 1e-5
"""An atom whose part outside the chosen ones is shorter than this share of it adds nothing."""


def transplant(
    donor_shared: torch.Tensor, donor_new: torch.Tensor, own_shared: torch.Tensor, k: int = SPARSITY
) -> torch.Tensor:
    """Embeddings (m x e, float32) of m tokens in a model that lacks them.

    ``donor_shared`` (n x d) and ``donor_new`` (m x d) are the donor's embeddings of n shared tokens and of the new
    ones, ``own_shared`` (n x e) the model's own of the shared tokens in the same order; the widths d and e may differ.
    Without a shared token everything is zero.
    """
    import torch

    made = torch.zeros(len(donor_new), own_shared.shape[1], dtype=torch.float32, device=own_shared.device)
    k = min(k, *donor_shared.shape)
    if k == 0:
        return made
    for start in range(0, len(donor_new), _TOKENS_AT_ONCE):
        part = slice(start, start + _TOKENS_AT_ONCE)
        chosen, coefficients = matching_pursuit(donor_shared, donor_new[part], k)
        made[part] = torch.einsum("mk,mke->me", coefficients, own_shared[chosen])
    return made


def matching_pursuit(atoms: torch.Tensor, wanted: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k atoms (n x d) of which each vector of ``wanted`` (m x d) is made, and their coefficients: both m x k.

    Each step takes the atom with the largest cosine to the residual and fits all taken atoms anew (by a QR
    decomposition that grows by a column a step). An atom that depends on those taken before has coefficient 0.
    """
    import torch

    m, d = wanted.shape
    unit = torch.nn.functional.normalize(atoms, dim=1)
    chosen = torch.zeros(m, k, dtype=torch.long, device=atoms.device)
    basis = torch.zeros(m, d, k, device=atoms.device)
    residual, taken = wanted.clone(), torch.zeros(m, len(atoms), dtype=torch.bool, device=atoms.device)
    for step in range(k):
        likeness = (residual @ unit.T).abs_().masked_fill_(taken, -1.0)
        chosen[:, step] = likeness.argmax(1)
        taken.scatter_(1, chosen[:, step : step + 1], True)
        column = unit[chosen[:, step]].unsqueeze(2)
        for _ in range(2):  # once more than in exact arithmetic, so that the basis stays orthogonal in float32
            column = column - basis @ (basis.transpose(1, 2) @ column)
        length = column.norm(dim=1, keepdim=True)
        column = torch.where(length > _DEPENDENT, column / length, torch.zeros_like(column)).squeeze(2)
        basis[:, :, step] = column
        residual = residual - column * (column * residual).sum(1, keepdim=True)
    triangle = basis.transpose(1, 2) @ atoms[chosen].transpose(1, 2)
    diagonal = triangle.diagonal(dim1=1, dim2=2)
    diagonal[basis.norm(dim=1) == 0] = 1.0
    projected = basis.transpose(1, 2) @ wanted.unsqueeze(2)
    return chosen, torch.linalg.solve_triangular(triangle, projected, upper=True).squeeze(2)
