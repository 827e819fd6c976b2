"""The front among candidates whose scores are estimates."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mergefront.optimizer.arrays import Array


def dominance(means: ArrayLike, errors: ArrayLike, of: slice = slice(None)) -> Array:
    """The chance that candidate i dominates candidate j (n x n, or those columns), larger means being better.

    ``means`` and ``errors`` (n x m) are normal and taken for independent; without any error it is 1 or 0.
    """
    from scipy.special import ndtr

    means, errors = np.asarray(means, dtype=float), np.asarray(errors, dtype=float)
    change = means[:, None] - means[None, of]
    error = np.hypot(errors[:, None], errors[None, of])
    exact = np.where(change >= 0, 1.0, 0.0)
    noisy = error > 0
    chance = np.where(noisy, ndtr(change / np.where(noisy, error, 1.0)), exact).prod(axis=2)
    same = (change == 0).all(axis=2) & ~noisy.any(axis=2)
    return np.asarray(np.where(same, 0.0, chance))


def likely_front(means: ArrayLike, errors: ArrayLike, of: slice = slice(None)) -> list[bool]:
    """Whether each candidate, or each of some, is on the front as far as is known.

    It is not when another one dominates it with a chance of ``DROPPED_AT`` or more. Without any error that is the
    front itself; the front of the estimates alone would be too small, as noise lets candidates dominate their equals.
    """
    return [bool(chance < DROPPED_AT) for chance in dominance(means, errors, of).max(axis=0)]


DROPPED_AT = 2 / 3
"""Replaying four merge problems (30 candidates asked a fifth of the items, 60 asked a tenth), fronts at 1/2 lost up to
0.8 % of the hypervolume of all that was tried, at 2/3 at most 0.1 %; the plain front of the estimates lost up to 4.4 %.
They have up to 35 members more than the true front of 60 candidates, which has 15 to 51."""
