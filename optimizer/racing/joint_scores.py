"""What every candidate scores on all items, from the items that each has answered: one model of all answers.

Merges of the same experts answer alike, the more so the nearer they lie; so what one of them answered says
something about what another one would have. Answers are taken for a few factors of the items, weighted by each
candidate in its own way, and noise (factor analysis with missing entries: Rubin and Thayer 1982; Little and Rubin,
Statistical Analysis with Missing Data, chapter 11). Whatever was answered decides what is asked next, so that the
rest is missing at random. Where items have margins whose sign is the answer, the margins are modelled, which say
more than right and wrong: merges that lie near each other have nearly the same, and an item that was not asked is
right as probably as its margin is positive. A candidate's mean over all items is that of its known and expected
scores.

How far this can be trusted is checked on the items that a candidate did answer, each predicted without its own
answer: the predictions' spread gives the standard error, and their mean error, as far as it is more than noise,
corrects the mean.

Notation: J candidates, N items, F factors; ``scores`` and ``margins`` J x N with NaN where an item was not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from mergefront.optimizer.arrays import Array, Integers, Mask
from mergefront.optimizer.scores.evaluation import Estimate

FACTORS = 8
"""At most, and no more than one for two candidates. On merges of four kinds of networks 4 are too few, 12 no better."""
ITERATIONS = 20
"""Errors of estimates no longer change after that, though the fit does."""
PRIOR_ITEMS = 4.0
"""A candidate's variance is pulled towards that of all, as if so many items had said so."""
PRIOR_LOADING_ITEMS = 3.0
"""The same for its loadings."""
SQUASH = 2.0
"""Margins m enter as asinh(SQUASH m) in units of their root mean square: what counts is how near to 0 they are."""


@dataclass(frozen=True)
class _Fit:
    """``means`` and ``variances`` (J x N) of every entry given all answers; ``others_means`` and ``others_variances``
    of the known ones given all answers but their own."""

    means: Array
    variances: Array
    others_means: Array
    others_variances: Array


def joint_estimates(scores: Array, margins: Array | None = None) -> list[Estimate]:
    """One estimate for each candidate (row of ``scores``, J x N); each must have answered at least one item.

    ``margins`` are used where they decide the scores: 1 above 0 and 0 below, for every answer.
    """
    scores = np.asarray(scores, dtype=float)
    known = ~np.isnan(scores)
    counts = known.sum(axis=1)
    if not counts.all():
        raise ValueError("every candidate must have answered at least one item")
    items = scores.shape[1]
    known_scores = np.where(known, scores, 0.0)
    means = known_scores.sum(axis=1) / counts
    spreads = _pooled(np.where(known, scores - means[:, None], 0.0) ** 2, counts, 1)
    open_variances = spreads
    if not known.all() and len(scores) >= 2 and spreads.any():
        expected, others = _expected(known_scores, known, margins)
        residuals = np.where(known, scores - others, 0.0)
        bias = residuals.sum(axis=1) / counts
        open_variances = _pooled(np.where(known, residuals - bias[:, None], 0.0) ** 2, counts, 1)
        means = expected.mean(axis=1) + (1.0 - counts / items) * _beyond_noise(bias, open_variances / counts)
    unasked = open_variances * (1.0 / counts - 1.0 / items)
    own = [
        float(row[answered].var(ddof=1)) if answered.sum() > 1 else 0.0
        for row, answered in zip(scores, known, strict=True)
    ]
    return [
        Estimate(float(mean), math.sqrt(variance + spread / items), math.sqrt(variance))
        for mean, variance, spread in zip(means, unasked, own, strict=True)
    ]


def _expected(scores: Array, known: Mask, margins: Array | None) -> tuple[Array, Array]:
    """Expected scores (J x N): of every entry given all answers; of the known ones given all answers but their own."""
    if margins is None or not _decisive(scores, known, margins):
        fit = _fit(scores, known)
        return np.where(known, scores, fit.means), fit.others_means
    values = np.where(known, margins, 0.0)
    unit = math.sqrt(float((values**2).sum()) / float(known.sum())) or 1.0
    fit = _fit(np.arcsinh(SQUASH * values / unit) / SQUASH, known)
    expected = ndtr(fit.means / np.sqrt(fit.variances))
    return np.where(known, scores, expected), ndtr(fit.others_means / np.sqrt(fit.others_variances))


def _decisive(scores: Array, known: Mask, margins: Array) -> bool:
    """Whether the margins are all there and their sign is the score; at 0 it may be either."""
    right = np.where(margins == 0.0, scores, margins > 0.0)
    return bool(np.isfinite(margins[known]).all() and (right == scores)[known].all())


def _beyond_noise(bias: Array, variances: Array) -> Array:
    """The part of each bias (J) that is more than noise of these ``variances``, judged by all of them (empirical
    Bayes)."""
    real = max(0.0, float(np.mean(bias**2 - variances)))
    if real == 0.0:
        return np.zeros_like(bias)
    return np.asarray(bias * real / (real + variances))


def _pooled(squares: Array, counts: Integers, lost: int) -> Array:
    """Each row's mean of ``squares`` (J x N; ``lost`` degrees of freedom less), pulled towards that of all rows.

    A few equal answers are no certainty.
    """
    sums = squares.sum(axis=1)
    pooled = float(sums.sum() / max(counts.sum() - lost * len(counts), 1))
    return np.asarray((sums + PRIOR_ITEMS * pooled) / (counts - lost + PRIOR_ITEMS))


def _fit(values: Array, known: Mask) -> _Fit:
    """Factor analysis of ``values`` (J x N, 0 where not known) by expectation maximisation.

    An entry is its candidate's mean, plus its loadings (J x F) times the item's factors (N x F, standard normal), plus
    noise of the candidate's variance. Loadings are pulled towards those of the mean candidate.
    """
    weights = known.astype(float)
    counts = known.sum(axis=1)
    means = values.sum(axis=1) / counts
    residuals = np.where(known, values - means[:, None], 0.0)
    scale = float((residuals**2).sum() / counts.sum())
    least = 1e-5 * scale or 1e-12
    loadings = _first_loadings(residuals, weights, scale)
    noise = np.maximum((residuals**2).sum(axis=1) / counts - (loadings**2).sum(axis=1), max(0.1 * scale, least))
    factors = loadings.shape[1]
    prior = np.append(np.full(factors, PRIOR_LOADING_ITEMS), 0.0)
    for _ in range(ITERATIONS):
        item_means, item_covariances = _factors(residuals, weights, loadings, noise)
        squares = item_covariances + item_means[:, :, None] * item_means[:, None, :]
        normal = np.empty((len(values), factors + 1, factors + 1))
        normal[:, :-1, :-1] = np.tensordot(weights, squares, axes=1)
        normal[:, :-1, -1] = normal[:, -1, :-1] = weights @ item_means
        normal[:, -1, -1] = counts
        right = np.column_stack([values @ item_means, values.sum(axis=1)])
        pulled = prior * np.append(loadings.mean(axis=0), 0.0)
        solved = np.linalg.solve(normal + np.diag(prior), (right + pulled)[:, :, None])[:, :, 0]
        loadings, means = solved[:, :-1], solved[:, -1]
        residuals = np.where(known, values - means[:, None], 0.0)
        left = np.where(known, residuals - loadings @ item_means.T, 0.0) ** 2
        left += weights * _spread(loadings, item_covariances)
        noise = np.maximum(_pooled(left, counts, 0), least)
    item_means, item_covariances = _factors(residuals, weights, loadings, noise)
    common = _spread(loadings, item_covariances)
    fitted = means[:, None] + loadings @ item_means.T
    # A known entry pulled its own prediction by this share; without it the prediction lies that much further away.
    leverage = np.minimum(common / noise[:, None], 0.999)
    apart = fitted - leverage / (1.0 - leverage) * (values - fitted)
    return _Fit(fitted, common + noise[:, None], apart, noise[:, None] + common / (1.0 - leverage))


def _first_loadings(residuals: Array, weights: Array, scale: float) -> Array:
    """Loadings (J x F) to start from: the main components of the covariance over the items that two both answered."""
    both = weights @ weights.T
    covariance = (residuals @ residuals.T + PRIOR_ITEMS * scale) / (both + PRIOR_ITEMS)
    np.fill_diagonal(covariance, (residuals**2).sum(axis=1) / np.diag(both))
    values, vectors = np.linalg.eigh(covariance)
    factors = max(min(FACTORS, (len(residuals) - 1) // 2), 1)
    return np.asarray(vectors[:, -factors:] * np.sqrt(np.maximum(values[-factors:], 0.01 * scale)))


def _factors(residuals: Array, weights: Array, loadings: Array, noise: Array) -> tuple[Array, Array]:
    """Every item's factors given its answers: means (N x F) and covariances (N x F x F)."""
    scaled = loadings / noise[:, None]
    products = loadings[:, :, None] * scaled[:, None, :]
    precisions = np.tensordot(weights.T, products, axes=1) + np.eye(loadings.shape[1])
    covariances = np.asarray(np.linalg.inv(precisions), dtype=float)
    return np.einsum("nfg,ng->nf", covariances, residuals.T @ scaled), covariances


def _spread(loadings: Array, covariances: Array) -> Array:
    """Variance (J x N) of the part of each entry that its item's factors explain, as far as these are open."""
    pairs = (loadings[:, :, None] * loadings[:, None, :]).reshape(len(loadings), -1)
    return np.asarray(pairs @ covariances.reshape(len(covariances), -1).T)
