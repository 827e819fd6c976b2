"""The arithmetic of merging experts of one layer: groups, permutations of neurons, averages.

    e    experts          k    experts that are kept          h    width of the model
    i    neurons of an expert          t    tokens          d    numbers that stand for an expert

An expert is gate (i x h), up (i x h) and down (h x i): down (act(gate x) * up x).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment

Groups = tuple[tuple[int, ...], ...]
"""Experts by group; the first of each is its core."""
_ROUNDS = 100
"""Of k-means; it ends long before."""


class Expert(NamedTuple):
    """The matrices of one expert, in float32."""

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor


def by_usage(usage: torch.Tensor, logits: torch.Tensor, keep: int) -> Groups:
    """The ``keep`` most used experts are cores, each other one joins the core with the most similar router logits.

    M-SMoE (arXiv 2310.01334), section 3.2; ``usage`` (e) counts tokens, ``logits`` are ``t x e``. Similarity is the
    cosine over tokens. There one threshold for all layers says how many are kept in each; here all keep the same
    number, which is the only number that a configuration has.
    """
    cores = usage.argsort(descending=True, stable=True)[:keep].tolist()
    columns = torch.nn.functional.normalize(logits.double(), dim=0)
    likeness = columns.T @ columns[:, cores]
    groups = {core: [core] for core in cores}
    for expert in range(len(usage)):
        if expert not in groups:
            groups[cores[int(likeness[expert].argmax())]].append(expert)
    return tuple(tuple(members) for members in groups.values())


def by_outputs(usage: torch.Tensor, outputs: torch.Tensor, keep: int) -> Groups:
    """K-means of the experts' outputs (``e x d``) by cosine, the most used expert of each cluster its core.

    Sub-MoE (arXiv 2506.23266). The first centre is the most used expert, each next one the expert that is least like
    all before; a cluster that loses its last member gets the expert that is least like its centre.
    """
    points = torch.nn.functional.normalize(outputs.double(), dim=1).cpu()
    chosen = [int(usage.argmax())]
    while len(chosen) < keep:
        nearest = (points @ points[chosen].T).amax(dim=1)
        nearest[chosen] = float("inf")
        chosen.append(int(nearest.argmin()))
    centres, members = points[chosen], torch.full((len(points),), -1)
    for _ in range(_ROUNDS):
        likeness = points @ centres.T
        found = likeness.argmax(dim=1)
        for cluster in range(keep):
            if not (found == cluster).any():
                counts = torch.bincount(found, minlength=keep)[found]
                own = likeness.gather(1, found.unsqueeze(1)).squeeze(1)
                found[int(torch.where(counts > 1, own, torch.inf).argmin())] = cluster
        if torch.equal(found, members):
            break
        members = found
        means = torch.stack([points[members == cluster].mean(dim=0) for cluster in range(keep)])
        centres = torch.nn.functional.normalize(means, dim=1)
    clusters = [torch.where(members == cluster)[0].tolist() for cluster in range(keep)]
    return tuple(tuple(sorted(cluster, key=lambda expert: (-float(usage[expert]), expert))) for cluster in clusters)


def most_used(usage: torch.Tensor, keep: int) -> Groups:
    """The ``keep`` most used experts alone: the others are left out."""
    return tuple((expert,) for expert in usage.argsort(descending=True, stable=True)[:keep].tolist())


def aligned(expert: Expert, core: Expert) -> Expert:
    """The expert with its neurons in the order that is most like the core's; what it computes stays the same.

    The permutation with the largest sum of inner products of neurons (their rows of gate and up and columns of down;
    an assignment problem).
    """
    gain = core.gate @ expert.gate.T + core.up @ expert.up.T + core.down.T @ expert.down
    order = torch.from_numpy(linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)[1]).to(gain.device)
    return Expert(expert.gate[order], expert.up[order], expert.down[:, order])


def shares(usage: torch.Tensor, group: Sequence[int]) -> torch.Tensor:
    """How much each expert of a group counts: by its tokens, all the same where there are none."""
    counts = usage[list(group)].double()
    return counts / counts.sum() if counts.sum() > 0 else torch.full_like(counts, 1 / len(group))


def average(experts: Sequence[Expert], weights: torch.Tensor) -> Expert:
    """The weighted average of experts whose neurons are aligned."""
    return Expert(*(_weighted(matrices, weights) for matrices in zip(*experts, strict=True)))


def in_subspace(experts: Sequence[Expert], weights: torch.Tensor, rank: float) -> Expert:
    """Each matrix as U S V^T in the left vectors that all share (Sub-MoE, section 3.3).

    [W_1 ... W_n] = U S [V_1 ... V_n]^T, V the weighted mean of the V_j, of which the leading ``rank`` (a share) of the
    directions are kept. With all of them U S V^T is the weighted average.
    """

    def merged(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
        left, values, right = torch.linalg.svd(torch.cat(list(matrices), dim=1), full_matrices=False)
        kept = max(1, round(rank * len(values)))
        mean = _weighted(right[:kept].split(matrices[0].shape[1], dim=1), weights)
        product: torch.Tensor = (left[:, :kept] * values[:kept]) @ mean
        return product

    return Expert(*(merged(matrices) for matrices in zip(*experts, strict=True)))


def _weighted(tensors: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights.tolist(), strict=True):
        total += weight * tensor
    return total
