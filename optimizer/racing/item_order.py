"""Which items to ask first.

Every candidate answers the same few items first, so that candidates can be compared item by item: a part of those
that the anchors answered, in which items that many, some and no anchors get right stand in proportion. After
them each candidate goes on with items that were asked least so far, block by block, so that all candidates
together have soon answered every item, and no search optimises on the luck of one part of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.seeding import derive_seed

MOST_STRATA = 6
SMALLEST_STRATUM = 8


def random_order(ids: Sequence[str], seed: int) -> list[int]:
    """Indices of the items in an order that depends on the seed and their ids alone."""
    return sorted(range(len(ids)), key=lambda index: (derive_seed(seed, "racing", ids[index]), ids[index]))


def strata(references: Array) -> Integers:
    """The stratum of each item (``n``) by its mean over ``references``, the scores of ``a`` anchors (``a x n``).

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


def stratified_order(references: Array) -> list[int]:
    """Items (0 ... n-1) so that every stratum stands in every beginning in proportion to its size.

    Inside a stratum they keep their order, so that a beginning of a random order stays a fair sample.
    """
    labels = strata(references)
    queues = [np.flatnonzero(labels == label).tolist() for label in range(int(labels.max()) + 1)]
    places = [
        ((rank + 0.5) / len(queue), label, item)
        for label, queue in enumerate(queues)
        for rank, item in enumerate(queue)
    ]
    return [item for _, _, item in sorted(places)]


def least_asked_first(items: Sequence[int], asked: Integers, size: int, seed: int, turn: int) -> list[int]:
    """``items`` in blocks of ``size``, the blocks that were ``asked`` least (times each item was) first.

    Of equally often asked blocks ``seed`` and ``turn`` draw one, so that the same blocks do not always meet.
    """
    blocks = [list(items[start : start + size]) for start in range(0, len(items), size)]
    ranked = sorted(
        range(len(blocks)),
        key=lambda number: (float(asked[blocks[number]].mean()), derive_seed(seed, "racing block", number, turn)),
    )
    return [item for number in ranked for item in blocks[number]]
