"""Differential evolution among elites: the weak-to-strong step of MM-MO (arXiv 2407.00487, section 3.3).

mutant = clip(a + 0.5 (b - c)) with three distinct elites, then binomial crossover with the weak candidate
(DE/rand/1/bin: Storn and Price, 1997). Points are ``n x d`` in [0, 1].
"""

from __future__ import annotations

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.scores.pareto import hypervolume_contributions, nondominated_ranks

DIFFERENTIAL_WEIGHT = 0.5
CROSSOVER_RATE = 0.5
"""The weight is that of the formula above; the rate was chosen by hand."""


def mutants(elites: Array, count: int, rng: np.random.Generator) -> Array:
    """``count x d`` mutants of at least three elites (``e x d``), clipped to the unit cube."""
    if len(elites) < 3:
        raise ValueError(f"differential evolution needs 3 elites, got {len(elites)}")
    chosen = np.stack([rng.choice(len(elites), size=3, replace=False) for _ in range(count)])
    a, b, c = (elites[chosen[:, i]] for i in range(3))
    return np.asarray(np.clip(a + DIFFERENTIAL_WEIGHT * (b - c), 0.0, 1.0))


def binomial_crossover(donors: Array, targets: Array, rng: np.random.Generator) -> Array:
    """Each target (``n x d``) with about half of its coordinates, at least one, taken from its donor (``n x d``)."""
    take = rng.random(targets.shape) < CROSSOVER_RATE
    take[np.arange(len(targets)), rng.integers(targets.shape[1], size=len(targets))] = True
    return np.where(take, donors, targets)


def elites_by_hypervolume(values: Array, reference: Array, count: int) -> Integers:
    """Rows of ``values`` (``n x m``, maximised) in the order of what the hypervolume loses without them.

    The front comes first; when it is smaller than ``count``, the best of the next fronts follow.
    """
    ranks = nondominated_ranks(values)
    order: list[int] = []
    for rank in range(int(ranks.max(initial=-1)) + 1):
        if len(order) >= count:
            break
        layer = np.flatnonzero(ranks == rank)
        losses = hypervolume_contributions(values[layer], reference.tolist())
        # Equal losses (all zero below the reference point) fall back on the sum of the objectives.
        ranked = np.lexsort((-values[layer].sum(axis=1), -np.round(losses, 12)))
        order.extend(layer[ranked].tolist())
    return np.array(order[:count], dtype=int)


def elites_by_sum(values: Array, count: int) -> Integers:
    """The ``count`` rows of ``values`` (``n x t``, maximised) with the largest sum: the paper's elites."""
    return np.argsort(-values.sum(axis=1), kind="stable")[:count]
