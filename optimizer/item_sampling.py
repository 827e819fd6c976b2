"""Which items to ask first, and what a part of the items says about all of them.

The anchors' answers tell which items separate merges: those that some anchors get right and others
do not. Items are put into strata by their mean anchor score, strata are asked in proportion to size
times spread (Neyman 1934), and the mean over all items is estimated from the part that was asked by
regression on the anchors' scores of the same items (the generalised regression estimator of Sarndal,
Swensson and Wretman 1992), which takes out what merge and anchors have in common.

Notation (shapes):

    references   a x n    scores of n items by a anchors
    labels       n        stratum of each item, 0, 1, ...
    asked        k        indices of the items that were asked
    scores       k        what the candidate scored on them
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.comparison import Difference
from mergefront.optimizer.seeding import derive_seed

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_STRATA = 6
SMALLEST_STRATUM = 8
RIDGE = 2.0
"""Ridge penalty on the regression's slopes, in items: with few items asked the anchors count for little."""


@dataclass(frozen=True)
class Estimate:
    """The mean score over all items and its standard error (as a sample of the items there might be)."""

    mean: float
    standard_error: float


def random_order(ids: Sequence[str], seed: int) -> list[int]:
    """Indices of the items in an order that depends on the seed and their ids alone."""
    return sorted(range(len(ids)), key=lambda index: (derive_seed(seed, "racing", ids[index]), ids[index]))


def strata(references: Array) -> Integers:
    """The stratum of each item (``n``) by its mean over ``references`` (``a x n``).

    At most ``MOST_STRATA``, each of at least ``SMALLEST_STRATUM`` items where there are so many; items of
    one mean share one stratum.
    """
    means = references.mean(axis=0)
    values, index, counts = np.unique(np.round(means, 9), return_inverse=True, return_counts=True)
    smallest = max(SMALLEST_STRATUM, math.ceil(len(means) / (2 * MOST_STRATA)))
    label_of_value = np.zeros(len(values), dtype=np.int64)
    label, filled = 0, 0
    left = int(counts.sum())
    for place, count in enumerate(counts):
        label_of_value[place] = label
        filled += int(count)
        left -= int(count)
        if filled >= smallest and left >= smallest and label < MOST_STRATA - 1:
            label, filled = label + 1, 0
    return np.asarray(label_of_value[index], dtype=np.int64)


def spreads(references: Array, labels: Integers) -> Array:
    """How much a new candidate's scores are expected to vary in each stratum (standard deviations).

    From how the anchors disagree on an item, with one pseudo-anchor of average disagreement, so that no
    stratum counts as certain.
    """
    anchors = len(references)
    within = references.var(axis=0)
    pooled = max(float(references.var()), 1e-12)
    return np.array(
        [
            math.sqrt((anchors * float(within[labels == label].mean()) + pooled) / (anchors + 1))
            for label in range(int(labels.max()) + 1)
        ]
    )


def informative_order(references: Array, base: Sequence[int], least: int = 2) -> tuple[list[int], Integers]:
    """Items (a permutation of 0 ... n-1) so that every prefix is close to Neyman's allocation, and their strata.

    ``base`` is the order inside a stratum; the first ``least`` items of every stratum come first.
    """
    labels = strata(references)
    queues = [[index for index in base if labels[index] == label] for label in range(int(labels.max()) + 1)]
    weights = np.array([len(queue) for queue in queues]) * spreads(references, labels)
    taken = np.zeros(len(queues), dtype=int)
    order: list[int] = []
    while len(order) < len(base):
        open_ = [label for label, queue in enumerate(queues) if taken[label] < len(queue)]
        scarce = [label for label in open_ if taken[label] < least]
        label = scarce[0] if scarce else min(open_, key=lambda one: ((taken[one] + 0.5) / weights[one], one))
        order.append(queues[label][taken[label]])
        taken[label] += 1
    return order, labels


def design_weights(labels: Integers, asked: Integers) -> Array:
    """How many items each asked one stands for (``k``): its stratum's size over the number asked of it.

    Strata of which nothing was asked are spread over the others.
    """
    strata_count = int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=strata_count).astype(float)
    counts = np.bincount(labels[asked], minlength=strata_count).astype(float)
    weights = np.where(counts > 0, sizes / np.maximum(counts, 1.0), 0.0)[labels[asked]]
    return np.asarray(weights * (len(labels) / weights.sum()))


def estimate(scores: Array, asked: Integers, labels: Integers, references: Array | None, total: int) -> Estimate:
    """The mean over ``total`` items from the ``asked`` ones among the ``n`` that have ``labels``.

    ``references`` are the anchors' scores of those n items (None: no regression). The standard error
    holds what the regression leaves open on the items not asked, and that even all the
    items are a sample; with every item asked it is that of a plain mean.
    """
    weights = design_weights(labels, asked)
    size = len(labels)
    if len(asked) == size or references is None or len(asked) < 4:
        predicted = np.full(size, float(np.average(scores, weights=weights)))
        slopes = 0.0
    else:
        predicted, slopes = _regression(scores, asked, weights, references)
    residuals = scores - predicted[asked]
    correction = float(np.average(residuals, weights=weights))
    mean = float(predicted.mean()) + correction
    inner = _stratified_variance(residuals - correction, asked, labels, slopes)
    spread = float(np.average((scores - mean) ** 2, weights=weights)) * len(asked) / max(len(asked) - 1, 1)
    return Estimate(mean, math.sqrt(inner + spread / min(size, total)))


def difference(first: Array, second: Array, asked: Integers, labels: Integers, total: int) -> Difference:
    """First minus second over ``total`` items, from the ``asked`` items that both answered.

    Paired, with the strata's weights; the standard error is that of a sample of the ``total`` items, so that
    it vanishes when all were asked.
    """
    change = first - second
    weights = design_weights(labels, asked)
    mean = float(np.average(change, weights=weights))
    count = len(asked)
    if count < 2:
        return Difference(mean, 0.0, math.inf, count)
    variance = float(np.sum((weights / weights.sum() * (change - mean)) ** 2)) * count / (count - 1)
    return Difference(mean, math.sqrt(variance * max(0.0, 1.0 - count / total)), count - 1, count)


def _regression(scores: Array, asked: Integers, weights: Array, references: Array) -> tuple[Array, float]:
    """Predicted scores of all items (``n``) by ridge regression on the anchors', and the slopes' degrees of freedom."""
    centred = references - references.mean(axis=1, keepdims=True)
    scale = centred.std(axis=1, keepdims=True)
    used = (centred / np.where(scale > 0, scale, 1.0))[scale[:, 0] > 0]
    if len(used) == 0:
        return np.full(references.shape[1], float(np.average(scores, weights=weights))), 0.0
    share = weights * (len(asked) / weights.sum())
    intercept = float(np.average(scores, weights=weights))
    x = used[:, asked] - np.average(used[:, asked], axis=1, weights=weights)[:, None]
    gram = (x * share) @ x.T
    penalised = gram + RIDGE * np.eye(len(gram))
    slopes = np.linalg.solve(penalised, (x * share) @ (scores - intercept))
    freedom = float(np.trace(np.linalg.solve(penalised, gram)))
    return np.asarray(intercept + slopes @ used), freedom


def _stratified_variance(residuals: Array, asked: Integers, labels: Integers, slopes: float) -> float:
    """Variance of the weighted mean of residuals; each stratum's spread is pulled towards the common one."""
    count, size = len(asked), len(labels)
    if count == size:
        return 0.0
    pooled = float(np.sum(residuals**2)) / max(count - 1 - slopes, 1.0)
    variance = 0.0
    for label in range(int(labels.max()) + 1):
        of_stratum = int(np.sum(labels == label))
        inside = residuals[labels[asked] == label]
        if of_stratum == 0 or len(inside) == 0:
            continue
        spread = (float(np.sum((inside - inside.mean()) ** 2)) + 2.0 * pooled) / (len(inside) + 1)
        variance += (of_stratum / size) ** 2 * spread / len(inside) * (1.0 - len(inside) / of_stratum)
    return variance
