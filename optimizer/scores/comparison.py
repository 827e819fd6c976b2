"""Is one score better than another, or is it noise? Paired differences, p-values, many comparisons.

Two recipes are scored on the same items, so their scores go up and down together; comparing item by
item takes that common part out and sees differences that separate standard errors hide. Everything
here is oriented: a positive difference means that the first is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Difference:
    """First minus second, in the unit of the scores.

    ``standard_error`` is 0 for exact numbers. ``degrees_of_freedom`` belongs to the standard error
    (infinite where it is taken as known). ``pairs`` is the number of items compared one by one, or
    None when the two were not compared item by item. ``discordant`` counts, where every item is right or wrong, those
    that only the first and those that only the second got right.
    """

    mean: float
    standard_error: float = 0.0
    degrees_of_freedom: float = math.inf
    pairs: int | None = None
    discordant: tuple[int, int] | None = None

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference: McNemar's exact test for right-or-wrong items, else Student's t.

        For exact numbers it is 0 or 1. With n pairs it is never below 2 / 2^n, the least that any test which flips
        signs can say: items that all agree have no spread, and three of them still prove little.
        """
        if self.mean == 0:
            return 1.0
        if self.discordant is not None:
            return min(2.0 * _at_most(min(self.discordant), sum(self.discordant)), 1.0)
        floor = 0.0 if self.pairs is None else 2.0 ** (1 - self.pairs)
        if self.standard_error == 0:
            return min(floor, 1.0)
        ratio = abs(self.mean) / self.standard_error
        return min(max(_two_sided(ratio, self.degrees_of_freedom), floor), 1.0)


def paired_difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """Mean of ``first - second`` over the same items, each with one score in both (``n`` and ``n``).

    Raises ``ValueError`` for different lengths and for no items.
    """
    ours, theirs = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    count = len(ours)
    if count != len(theirs) or not count:
        raise ValueError(f"{count} and {len(theirs)} scores: a paired difference needs the same items, at least 1")
    differences = ours - theirs
    mean = float(differences.mean())
    discordant = None
    if all(((scores == 0.0) | (np.abs(scores) == 1.0)).all() for scores in (ours, theirs)):
        discordant = (int((differences > 0).sum()), int((differences < 0).sum()))
    if count < 2:
        return Difference(mean, 0.0, math.inf, count, discordant)
    variance = float(differences.var(ddof=1))
    return Difference(mean, math.sqrt(variance / count), count - 1, count, discordant)


def unpaired_difference(
    first: float, first_error: float | None, second: float, second_error: float | None
) -> Difference:
    """``first - second`` from the two standard errors (None: an exact number)."""
    return Difference(first - second, math.hypot(first_error or 0.0, second_error or 0.0))


def weighted_sum(differences: Sequence[Difference], weights: Sequence[float]) -> Difference:
    """The weighted sum of independent differences, such as of several tasks' scores.

    Degrees of freedom by Welch and Satterthwaite; ``pairs`` is the sum where every noisy part is
    paired, so that the p-value's floor is that of all items together.
    """
    mean = math.fsum(weight * part.mean for part, weight in zip(differences, weights, strict=True))
    variances = [(weight * part.standard_error) ** 2 for part, weight in zip(differences, weights, strict=True)]
    variance = math.fsum(variances)
    spent = math.fsum(v**2 / part.degrees_of_freedom for v, part in zip(variances, differences, strict=True) if v > 0)
    freedom = variance**2 / spent if spent > 0 else math.inf
    counts = [part.pairs for part in differences if part.pairs is not None]
    noisy_unpaired = any(part.pairs is None and part.standard_error > 0 for part in differences)
    return Difference(mean, math.sqrt(variance), freedom, sum(counts) if counts and not noisy_unpaired else None)


def holm(p_values: Sequence[float], comparisons: int | None = None) -> list[float]:
    """p-values corrected for their number, in the given order (Holm 1979).

    Rejecting those below a level keeps the chance of any false rejection below that level. ``comparisons`` is the
    number of comparisons that these were picked from, where it is larger: those left out count as not rejected.
    """
    count = max(len(p_values), comparisons or 0)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _at_most(heads: int, throws: int) -> float:
    """P(at most so many heads in so many throws of a coin), for at most half of them."""
    ways = math.lgamma(throws + 1) - math.lgamma(heads + 1) - math.lgamma(throws - heads + 1)
    exactly = math.exp(ways - throws * math.log(2.0))
    total = 0.0
    while exactly > 1e-17 * total:
        total += exactly
        exactly *= heads / (throws - heads + 1)
        heads -= 1
    return total


def _two_sided(ratio: float, degrees_of_freedom: float) -> float:
    if math.isinf(degrees_of_freedom):
        return math.erfc(ratio / math.sqrt(2.0))
    from scipy.special import stdtr

    return float(2.0 * stdtr(degrees_of_freedom, -ratio))


def mean_interval(scores: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of the mean of item scores; scipy.stats has them too, and takes a second to import.

    Wilson's (1927) for items that are right or wrong, which stays inside [0, 1] and has a width when all
    agree; Student's otherwise. Raises ``ValueError`` for no items.
    """
    count = len(scores)
    if count == 0:
        raise ValueError("an empty sample has no interval")
    mean = math.fsum(scores) / count
    if all(score in (0.0, 1.0) for score in scores):
        z = NormalDist().inv_cdf(0.5 + level / 2)
        centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
        # Rounding would leave a trillionth of a millionth where the bound is exactly 0 or 1.
        return 0.0 if mean == 0 else max(0.0, centre - half), 1.0 if mean == 1 else min(1.0, centre + half)
    if count < 2:
        return -math.inf, math.inf
    from scipy.special import stdtrit

    variance = math.fsum((score - mean) ** 2 for score in scores) / (count - 1)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * math.sqrt(variance / count)
    return mean - half, mean + half
