"""What every candidate scores on all items, from the items that each has answered: one model of all answers.

Merges of the same experts answer alike, the more so the nearer they lie; so what one of them answered says
something about what another one would have. Each item is taken for one draw of a vector, its scores under every
candidate, from a normal distribution with unknown mean and covariance, of which only some entries are known
(whatever was answered decides what is asked next, so that the rest is missing at random). Mean and covariance are
fitted by expectation maximisation (Dempster, Laird and Rubin 1977; Little and Rubin, Statistical Analysis with
Missing Data, chapter 11); the covariance is pulled towards one common correlation. A candidate's mean over all
items is that of its known and expected scores: with all items answered it is the plain mean, with independent
candidates the mean of what was answered, and otherwise regression on everybody who answered other items.

Notation: J candidates, N items, ``scores`` J x N with NaN where an item was not asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Places = NDArray[np.intp]

PRIOR_ITEMS = 20.0
"""The common correlation counts as much as so many items that two candidates both answered."""
PRIOR_VARIANCE_ITEMS = 4.0
"""The same for a candidate's variance and that of all candidates together."""
ITERATIONS = 12
TOLERANCE = 2e-4
"""Largest change of a mean, in standard deviations of a score, at which the fit has converged."""
_RIDGE = 1e-6


@dataclass(frozen=True)
class Estimate:
    """The mean score over all items.

    ``standard_error`` is its error as a sample of the items that there might be, ``unasked_error`` only what the items
    not asked leave open: 0 once all were.
    """

    mean: float
    standard_error: float
    unasked_error: float = 0.0


def joint_estimates(scores: Array) -> list[Estimate]:
    """One estimate for each candidate (row of ``scores``, J x N); each must have answered at least one item."""
    scores = np.asarray(scores, dtype=float)
    known = ~np.isnan(scores)
    counts = known.sum(axis=1)
    if not counts.all():
        raise ValueError("every candidate must have answered at least one item")
    items = scores.shape[1]
    own = np.array([float(row[answered].mean()) for row, answered in zip(scores, known, strict=True)])
    spreads = _variances(scores, known)
    if known.all() or len(scores) < 2 or not spreads.any():
        means, open_variance = own, spreads
    else:
        means, open_variance = _fit(scores, known, own, spreads)
    share = 1.0 - counts / items
    unasked = open_variance * (share**2 / counts + share / items)
    spread = [
        float(row[answered].var(ddof=1)) if answered.sum() > 1 else 0.0
        for row, answered in zip(scores, known, strict=True)
    ]
    return [
        Estimate(float(mean), math.sqrt(variance + own_spread / items), math.sqrt(variance))
        for mean, variance, own_spread in zip(means, unasked, spread, strict=True)
    ]


def _variances(scores: Array, known: Booleans) -> Array:
    """Variance of each candidate's scores (J), pulled towards that of all: a few equal answers are no certainty."""
    centred = np.where(known, scores - np.nanmean(scores, axis=1, keepdims=True), 0.0)
    counts = known.sum(axis=1)
    sums = (centred**2).sum(axis=1)
    pooled = float(sums.sum() / max(counts.sum() - len(counts), 1))
    return np.asarray((sums + PRIOR_VARIANCE_ITEMS * pooled) / (counts - 1 + PRIOR_VARIANCE_ITEMS))


def _fit(scores: Array, known: Booleans, start: Array, variances: Array) -> tuple[Array, Array]:
    """Means over all items (J) and the mean variance of an unasked item's score given the known ones (J)."""
    filled = np.where(known, scores, 0.0).T
    asked = known.T
    items, candidates = filled.shape
    patterns, members = np.unique(asked, axis=0, return_inverse=True)
    groups = [np.flatnonzero(members.ravel() == number) for number in range(len(patterns))]
    covariance, common = _first_covariance(filled, asked, start, variances)
    means = start
    scale = math.sqrt(float(variances.mean()))
    unasked = np.maximum(items - asked.sum(axis=0), 1)
    open_variance = variances
    for _ in range(ITERATIONS):
        expected = filled.copy()
        conditional = np.zeros((candidates, candidates))
        for answered, rows in zip(patterns, groups, strict=True):
            for missing, seen, slopes, left in _regressed(covariance, answered):
                expected[np.ix_(rows, missing)] = means[missing] + (filled[np.ix_(rows, seen)] - means[seen]) @ slopes
                conditional[np.ix_(missing, missing)] += len(rows) * left
        updated = expected.mean(axis=0)
        deviations = expected - updated
        sums = deviations.T @ deviations + conditional
        spreads = np.sqrt((np.diag(sums) + PRIOR_VARIANCE_ITEMS * variances) / (items + PRIOR_VARIANCE_ITEMS))
        covariance = (sums + PRIOR_ITEMS * common * np.outer(spreads, spreads)) / (items + PRIOR_ITEMS)
        open_variance = np.diag(conditional) / unasked
        moved = float(np.abs(updated - means).max())
        means = updated
        if moved < TOLERANCE * scale:
            break
    return means, open_variance


def _regressed(covariance: Array, answered: Booleans) -> Iterator[tuple[Places, Places, Array, Array]]:
    """For items answered by ``answered`` (J): who is missing, who is known, the slopes of the first on the second and
    the covariance that is left; nothing when nobody is missing."""
    missing, seen = np.flatnonzero(~answered), np.flatnonzero(answered)
    if len(missing) == 0:
        return
    between = covariance[np.ix_(seen, missing)]
    ridge = _RIDGE * float(np.trace(covariance)) / len(covariance)
    slopes = np.asarray(
        np.linalg.solve(covariance[np.ix_(seen, seen)] + ridge * np.eye(len(seen)), between), dtype=float
    )
    yield missing, seen, slopes, covariance[np.ix_(missing, missing)] - between.T @ slopes


def _first_covariance(filled: Array, asked: Booleans, means: Array, variances: Array) -> tuple[Array, Array]:
    """A covariance to start from (J x J) and the correlation that it is pulled towards: one number for all pairs.

    From the items that two candidates both answered.
    """
    spreads = np.sqrt(variances)
    normed = np.where(asked, (filled - means) / spreads, 0.0)
    both = asked.T.astype(float) @ asked.astype(float)
    products = normed.T @ normed
    apart = ~np.eye(len(means), dtype=bool)
    correlation = float(np.clip(products[apart].sum() / max(both[apart].sum(), 1.0), 0.0, 0.95))
    common = np.where(apart, correlation, 1.0)
    found = (products + PRIOR_ITEMS * common) / (both + PRIOR_ITEMS)
    np.fill_diagonal(found, 1.0)
    values, vectors = np.linalg.eigh(found)
    positive = (vectors * np.maximum(values, 0.02)) @ vectors.T
    scale = spreads / np.sqrt(np.diag(positive))
    return np.asarray(positive * np.outer(scale, scale)), common
