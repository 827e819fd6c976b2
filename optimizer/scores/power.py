"""How small a difference a comparison would still find: its power, turned round."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.scores.differences import LEVEL

POWER = 0.8
"""Chance of finding a difference that is there."""


def detectable_by_mcnemar(items: int, discordance: float, level: float = LEVEL) -> float | None:
    """The smallest difference of two shares of right items that McNemar's exact test finds with chance ``POWER``.

    ``discordance`` is the share of the ``items`` that one of the two gets right and the other wrong; a difference
    larger than it is taken to have no item that speaks against it. None where no difference is found at all: too few
    items. The power is the exact, unconditional one of Duffy, Asymptotic and exact power for the McNemar test and its
    analogue with R controls, Biometrics 40 (1984): the number of discordant items is binomial, and given that number
    those which the better one gets right are binomial too.
    """
    from scipy.special import bdtr

    counts = np.arange(items + 1)
    most = _largest_losing_side(items, level)

    def power(difference: float) -> float:
        share = max(discordance, difference)
        right = (share + difference) / (2.0 * share)
        chances = np.exp(_log_binomial(counts.astype(float), items, share))
        # Found: the losing side is small enough, whichever side that is.
        found = bdtr(most, counts, 1.0 - right) + bdtr(most, counts, right)
        return float(chances[most >= 0] @ found[most >= 0])

    return _smallest(power, 1.0)


def detectable_by_t(standard_error: float, degrees_of_freedom: float, level: float = LEVEL) -> float:
    """The smallest difference that a two-sided t-test finds with chance ``POWER``, in the standard error's unit.

    The non-centrality at which the test has that power (Cohen, Statistical Power Analysis for the Behavioral Sciences,
    1988, chapter 2), times the standard error of the difference; the wrong tail adds nothing to it.
    """
    from scipy.special import nctdtrinc, ndtri, stdtrit

    if math.isinf(degrees_of_freedom):
        return standard_error * float(ndtri(1.0 - level / 2.0) + ndtri(POWER))
    critical = stdtrit(degrees_of_freedom, 1.0 - level / 2.0)
    return standard_error * float(nctdtrinc(degrees_of_freedom, 1.0 - POWER, critical))


def _largest_losing_side(items: int, level: float) -> Array:
    """For 0 to ``items`` discordant items the most that the losing side may have with p < ``level``; -1: none."""
    from scipy.special import bdtr

    most = np.full(items + 1, -1)
    losing = -1
    for count in range(items + 1):
        # One more discordant item lets the losing side have at most one more.
        while 2 * (losing + 1) < count and 2.0 * bdtr(losing + 1, count, 0.5) < level:
            losing += 1
        most[count] = losing
    return most


def _log_binomial(counts: Array, of: int, share: float) -> Array:
    from scipy.special import gammaln, xlog1py, xlogy

    chances = xlogy(counts, share) + xlog1py(of - counts, -share)
    return np.asarray(gammaln(of + 1) - gammaln(counts + 1) - gammaln(of - counts + 1) + chances)


def _smallest(power: Callable[[float], float], largest: float) -> float | None:
    """The smallest difference with power ``POWER``, to a thousandth of a point; None where the largest has less."""
    if power(largest) < POWER:
        return None
    low, high = 0.0, largest
    while high - low > 1e-5:
        middle = (low + high) / 2.0
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
