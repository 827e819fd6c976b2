"""Scores of all items together, as numbers of their items: ranks, F1 over classes.

A score that is no mean over items is given to each of them by the jackknife: what it says with and without the item.
Such numbers have the score as their mean and its jackknife error as theirs, so that intervals and paired differences
hold; of a part of the items they say nothing (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 11).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergefront.optimizer.arrays import Array


def ndcg(gains: Sequence[float], relevant: Sequence[float], k: int) -> float:
    """Normalised discounted cumulative gain of the first ``k`` places of a ranking, as trec_eval has it.

    ``gains`` are the grades of what was found, the best place first; ``relevant`` the grades of all that is relevant.
    The gain is the grade itself, discounted by log2 of the place plus one (Järvelin and Kekäläinen, 2002).
    """
    return _discounted(gains[:k]) / _discounted(sorted(relevant, reverse=True)[:k])


def _discounted(gains: Sequence[float]) -> float:
    return float(np.asarray(gains, dtype=float) @ (1.0 / np.log2(np.arange(len(gains)) + 2.0))) if gains else 0.0


def spearman(first: Array, second: Array) -> float:
    """Spearman's rank correlation (``n`` and ``n``), ties by their mean rank; 0 where one side is all equal."""
    from scipy.stats import rankdata

    ours, theirs = (rankdata(values) - (len(values) + 1) / 2 for values in (first, second))
    scale = np.sqrt((ours @ ours) * (theirs @ theirs))
    return float(ours @ theirs / scale) if scale else 0.0


def spearman_items(first: Array, second: Array) -> list[float]:
    """The rank correlation of two sides (``n`` and ``n``, at least 2) as numbers of the items; see the module."""
    return _shares(
        spearman(first, second),
        np.array([spearman(np.delete(first, one), np.delete(second, one)) for one in range(len(first))]),
    )


def macro_f1_items(gold: Sequence[int], predicted: Sequence[int]) -> list[float]:
    """F1, averaged over the classes that occur on either side, as numbers of the items; see the module."""
    classes = sorted({*gold, *predicted})
    place = {one: number for number, one in enumerate(classes)}
    right, wanted, said = (np.zeros(len(classes)) for _ in range(3))
    for one, other in zip(gold, predicted, strict=True):
        wanted[place[one]] += 1
        said[place[other]] += 1
        right[place[one]] += one == other

    def score(right: Array, wanted: Array, said: Array) -> float:
        return float(np.mean(2 * right / np.maximum(wanted + said, 1)))

    unit = np.eye(len(classes))
    without = {
        (one, other): score(
            right - unit[place[one]] * (one == other), wanted - unit[place[one]], said - unit[place[other]]
        )
        for one, other in set(zip(gold, predicted, strict=True))
    }
    return _shares(score(right, wanted, said), np.array([without[pair] for pair in zip(gold, predicted, strict=True)]))


def _shares(whole: float, without: Array) -> list[float]:
    """Numbers with the mean ``whole``, whose spread is that of the score ``without`` each of the ``n`` items."""
    shares: list[float] = (whole + (len(without) - 1) * (without.mean() - without)).tolist()
    return shares
