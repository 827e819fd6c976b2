"""How small a difference a comparison would still find: its power, turned round."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
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
    counts = np.arange(items + 1)
    most = _largest_losing_sides(items, level)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])

    def power(difference: float) -> float:
        share = max(discordance, difference)
        right = (share + difference) / (2.0 * share)
        chances = _binomial(log_factorials, counts, np.full(items + 1, items), share)
        # Found: the losing side is small enough, whichever side that is.
        found = _at_most(log_factorials, most, 1.0 - right) + _at_most(log_factorials, most, right)
        return float(chances @ found)

    return _smallest(power, 1.0)


def detectable_by_t(standard_error: float, degrees_of_freedom: float, level: float = LEVEL) -> float:
    """The smallest difference that a two-sided t-test finds with chance ``POWER``, in the standard error's unit.

    The non-centrality at which the test has that power (Cohen, Statistical Power Analysis for the Behavioral Sciences,
    1988, chapter 2), times the standard error of the difference; the wrong tail adds nothing to it.
    """
    if math.isinf(degrees_of_freedom):
        normal = NormalDist()
        return standard_error * (normal.inv_cdf(1.0 - level / 2.0) + normal.inv_cdf(POWER))
    from scipy.special import nctdtrinc, stdtrit

    critical = stdtrit(degrees_of_freedom, 1.0 - level / 2.0)
    return standard_error * float(nctdtrinc(degrees_of_freedom, 1.0 - POWER, critical))


def _largest_losing_sides(items: int, level: float) -> Integers:
    """For 0 to ``items`` discordant items the most that the losing side may have with p < ``level``; -1: none."""
    most = np.full(items + 1, -1)
    # Of ``side`` losing ones among ``count`` items, each lost with chance 1/2: the chance of just so many, of no more.
    side, exactly, at_most = 0, 1.0, 1.0
    for count in range(1, items + 1):
        at_most -= exactly / 2.0
        exactly *= count / (2.0 * (count - side))
        most[count] = most[count - 1]
        if 2 * side < count and 2.0 * at_most < level:
            # One more discordant item lets the losing side have at most one more.
            most[count] = side
            exactly *= (count - side) / (side + 1)
            side, at_most = side + 1, at_most + exactly
    return most


def _at_most(log_factorials: Array, most: Integers, chance: float) -> Array:
    """P(at most ``most[n]`` of n events that each have this chance) for every n, where ``most`` grows by steps of 1."""
    trials = np.arange(len(most))
    lost = chance * _binomial(log_factorials, most[:-1], trials[:-1], chance)
    gained = _binomial(log_factorials, most[1:], trials[1:], chance) * np.diff(most)
    return np.cumsum(np.concatenate([[0.0], gained - lost]))


def _binomial(log_factorials: Array, events: Integers, trials: Integers, chance: float) -> Array:
    """P(so many events in so many trials); 0 for -1 events."""
    others = trials - events
    with np.errstate(divide="ignore", invalid="ignore"):
        happened = np.where(events == 0, 0.0, events * np.log(chance))
        did_not = np.where(others == 0, 0.0, others * np.log1p(-chance))
    ways = log_factorials[trials] - log_factorials[events] - log_factorials[np.minimum(others, trials)]
    return np.where(events < 0, 0.0, np.exp(ways + happened + did_not))


def _smallest(power: Callable[[float], float], largest: float) -> float | None:
    """The smallest difference with power ``POWER``, to a thousandth of a point; None where the largest has less."""
    if power(largest) < POWER:
        return None
    low, high = 0.0, largest
    while high - low > 1e-5:
        middle = (low + high) / 2.0
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
