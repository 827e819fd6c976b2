"""What every candidate scores on all items, from the items that each has answered: one model of all answers.

Merges of the same experts answer alike, the more so the nearer they lie; so what one of them answered says
something about what another one would have. Each answer is the candidate's mean, plus a candidate-specific weighted
sum of a few factors of the item, plus noise (factor analysis with missing entries: Rubin and Thayer 1982; Little and
Rubin, Statistical Analysis with Missing Data, chapter 11). Whatever was answered decides what is asked next, so that
the rest is missing at random. Where items have margins whose sign is the answer, the margins are modelled, which say
more than right and wrong: merges that lie near each other have nearly the same, and an item that was not asked is
right as probably as its margin is positive. A candidate's mean over all items is that of its known and expected
scores.

The stated error has three parts. The unasked items are uncertain one by one, as the model says. The candidates' means
are uncertain together: who answered the same items as its like knows nothing of the others (universal kriging:
Cressie, Statistics for Spatial Data, section 3.4). And the model may be wrong of one candidate: fitted without a
quarter of the answers in turn, it predicts these; how far they lie from what it says of them scales the first two
parts, and a candidate's mean residual, as far as it is more than noise, corrects its mean, with an error of its own
(empirical Bayes). There items that few answered count most, as the unasked ones are such. No answer is surer than so
many alike make it (``rule_of_succession``).

Notation: J candidates, N items, F factors; ``scores`` and ``margins`` J x N with NaN where an item was not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array, Integers, Mask
from mergefront.optimizer.scores.evaluation import Estimate, rule_of_succession

FACTORS = 8
"""At most, no more than one for two candidates, and as the square root of the answers of one allows. On 1,000 items of
merges of four kinds of networks 4 are too few, 12 no better; of 16 answers 3 say more than 8."""
ITERATIONS = 20
"""Errors of estimates no longer change after that, though the fit does."""
HELD_OUT_ITERATIONS = 6
"""The same for errors of what was held out."""
PRIOR_ITEMS = 4.0
"""A candidate's variance is pulled towards that of all, as if so many items had said so."""
PRIOR_LOADING_ITEMS = 3.0
"""The same for its loadings."""
SQUASH = 2.0
"""Margins m enter as asinh(SQUASH m) in units of their root mean square: what counts is how near to 0 they are."""
ITEMS_AT_ONCE = 1024
"""Of which an array of candidates by items by factors is held."""
FOLDS = 4
"""Parts of the answers that are held out in turn. Two states errors a tenth larger, eight a twentieth smaller."""


@dataclass(frozen=True)
class _Fit:
    """Of factor analysis: ``means``, ``noise`` (variances) (J) and ``loadings`` (J x F) of the candidates; means
    ``factors`` (N x F) and ``covariances`` (N x F x F) of the items' factors."""

    means: Array
    loadings: Array
    noise: Array
    factors: Array
    covariances: Array


@dataclass(frozen=True)
class _Predicted:
    """Scores that the items were not asked for (J x N): expected ones, their variances, and by how much each changes
    with the modelled value."""

    expected: Array
    variances: Array
    slopes: Array


@dataclass(frozen=True)
class _Alike:
    """Kinds of items: the same candidates answered those of a kind, whose factors are known equally well.

    ``weights`` (K x J) has who answered each kind, ``counted`` (J x K) how many of it each answered, ``first`` (K) an
    item of each kind, ``number`` (N) each item's kind.
    """

    weights: Array
    counted: Array
    first: Integers
    number: Integers

    @classmethod
    def of(cls, known: Mask) -> _Alike:
        packed = np.ascontiguousarray(np.packbits(known, axis=0).T)
        whole = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
        _, first, number, counts = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
        weights = known.T[first].astype(float)
        return cls(weights, weights.T * counts, first, number)


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
    squares = np.where(known, scores - means[:, None], 0.0) ** 2
    sampled = 1.0 / counts - 1.0 / items
    least = _least_variances(scores[known], counts)
    variances = np.maximum(_pooled(squares.sum(axis=1), counts, 1), least) * sampled
    if not known.all() and len(scores) >= 2 and squares.any():
        means, variances = _modelled(known_scores, known, margins, least)
        variances = np.maximum(variances, least * sampled)
    own = np.maximum(squares.sum(axis=1) / np.maximum(counts - 1, 1), least)
    return [
        Estimate(float(mean), math.sqrt(variance + spread / items), math.sqrt(variance))
        for mean, variance, spread in zip(means, variances, own, strict=True)
    ]


def _least_variances(answers: Array, counts: Integers) -> Array:
    """The variance of a candidate's answers (J) that so many of them leave possible where all of them agree.

    For right-or-wrong items that of the rule of succession; for others as large a part of the variance of all
    candidates' answers together.
    """
    right_or_wrong = bool(((answers == 0.0) | (answers == 1.0)).all())
    return np.asarray(rule_of_succession(counts) * (1.0 if right_or_wrong else float(answers.var())))


def _modelled(scores: Array, known: Mask, margins: Array | None, least: Array) -> tuple[Array, Array]:
    """Every candidate's mean over all items and its variance (J and J), given the ``least`` variance of an answer."""
    counts, items = known.sum(axis=1), scores.shape[1]
    smooth = margins is not None and _decisive(scores, known, margins)
    values = _squashed(margins, known) if margins is not None and smooth else scores
    factors = max(min(FACTORS, (len(scores) - 1) // 2, math.isqrt(int(np.median(counts))) - 1), 1)
    fit = _fit(values, known, factors)
    all_items = _predicted(fit, smooth)
    expected, said = _held_out(values, known, factors, smooth)
    residuals = np.where(known, scores - expected, 0.0)
    shares = _like_unasked(known)
    scale = _scale(residuals, said, shares)
    spreads = np.maximum(scale[:, None] * said, least[:, None])
    biases, chance, between = _biases(residuals, spreads, known / counts[:, None])
    means = np.where(known, scores, all_items.expected).mean(axis=1)
    means += (1.0 - counts / items) * biases * between / (between + chance)
    _, chance, between = _biases(residuals, spreads, shares)
    # One standard error of this variance more: residuals that agree by chance are no model without error.
    between += math.sqrt(2.0 / len(scores)) * float(chance.mean())
    open_variances = np.where(known, 0.0, np.maximum(scale[:, None] * all_items.variances, least[:, None]))
    variances = open_variances.sum(axis=1) / items**2
    variances += scale * _variances_of_means(fit, known, np.where(known, 0.0, all_items.slopes) / items)
    variances += (1.0 - counts / items) ** 2 * between * chance / (between + chance)
    return means, variances


def _like_unasked(known: Mask) -> Array:
    """How much each answer (J x N) counts for its candidate's items that were not asked; each row sums to 1.

    An item that many answered is predicted better than one that few did, and those that were not asked are of these:
    an item counts as often as it was not asked for each time that it was.
    """
    asked = known.sum(axis=0)
    odds = np.where(known, (len(known) - asked + 1.0) / np.maximum(asked, 1), 0.0)
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _held_out(values: Array, known: Mask, factors: int, smooth: bool) -> tuple[Array, Array]:
    """Every known score (J x N, 0 elsewhere) as expected by a fit without it, and its variance.

    Each candidate's answers are held out in ``FOLDS`` parts. A single answer is predicted with itself.
    """
    expected, variances = np.zeros(values.shape), np.zeros(values.shape)
    turn = (known.cumsum(axis=1) + np.arange(len(values))[:, None]) % FOLDS
    single = known.sum(axis=1, keepdims=True) == 1
    for fold in range(FOLDS):
        out = known & (turn == fold)
        kept = known & (~out | single)
        found = _predicted(_fit(np.where(kept, values, 0.0), kept, factors, HELD_OUT_ITERATIONS), smooth)
        expected[out], variances[out] = found.expected[out], found.variances[out]
    return expected, variances


def _scale(residuals: Array, said: Array, shares: Array) -> Array:
    """By how much each candidate's squared ``residuals`` exceed the variances that the model ``said`` (J x N), weighted
    by ``shares`` (J); pulled towards that of all, which is never below 1."""
    squares, variances = ((shares * one).sum(axis=1) for one in (residuals**2, said))
    counts = 1.0 / (shares**2).sum(axis=1)
    of_all = max(1.0, float(squares.sum() / variances.sum()))
    prior = PRIOR_ITEMS * float(variances.mean())
    return np.asarray((counts * squares + prior * of_all) / (counts * variances + prior))


def _biases(residuals: Array, variances: Array, shares: Array) -> tuple[Array, Array, float]:
    """The candidates' mean ``residuals``, weighted by ``shares`` (J x N), the variances of these means by chance, and
    the variance that is left between candidates (J, J and a number)."""
    biases, chance = (shares * residuals).sum(axis=1), (shares**2 * variances).sum(axis=1)
    return biases, chance, max(0.0, float(np.mean(biases**2 - chance)))


def _variances_of_means(fit: _Fit, known: Mask, weights: Array) -> Array:
    """What not knowing the candidates' means adds to the variance of each one's sum of unasked scores (J).

    ``weights`` (J x N) say how much each unasked value counts. The means are estimated by generalised least squares
    from the answers, whose items' factors are common to all who answered them; a prediction moves with all of them.
    """
    precise = fit.loadings / fit.noise[:, None]
    information, moves = np.diag(known.sum(axis=1) / fit.noise), np.diag(weights.sum(axis=1))
    for start in range(0, known.shape[1], ITEMS_AT_ONCE):
        block = slice(start, start + ITEMS_AT_ONCE)
        asked, covariances = known[:, block].astype(float), fit.covariances[block]
        common = np.einsum("jf,nfg->jng", precise, np.linalg.cholesky(covariances)) * asked[:, :, None]
        common = common.reshape(len(known), -1)
        information -= common @ common.T
        explained = np.einsum("nfg,jg->jnf", covariances, fit.loadings) * weights[:, block, None]
        moves -= np.einsum("jnf,kn,kf->jk", explained, asked, precise, optimize=True)
    return np.asarray(np.einsum("jk,jk->j", moves, np.linalg.solve(information, moves.T).T))


def _predicted(fit: _Fit, smooth: bool) -> _Predicted:
    """What a fit says of every entry; of ``smooth`` margins, how probably each is above 0."""
    expected = fit.means[:, None] + fit.loadings @ fit.factors.T
    variances = _spread(fit.loadings, fit.covariances) + fit.noise[:, None]
    if not smooth:
        return _Predicted(expected, variances, np.ones(expected.shape))
    errors = np.sqrt(variances)
    distances = expected / errors
    from scipy.special import ndtr

    chances = ndtr(distances)
    slopes = np.exp(-(distances**2) / 2.0) / (math.sqrt(2.0 * math.pi) * errors)
    return _Predicted(chances, chances * (1.0 - chances), slopes)


def _squashed(margins: Array, known: Mask) -> Array:
    """The margins as they are modelled, 0 where there are none."""
    values = np.where(known, margins, 0.0)
    unit = math.sqrt(float((values**2).sum()) / float(known.sum())) or 1.0
    return np.asarray(np.arcsinh(SQUASH * values / unit) / SQUASH)


def _decisive(scores: Array, known: Mask, margins: Array) -> bool:
    """Whether the margins are all there and their sign is the score; at 0 it may be either."""
    right = np.where(margins == 0.0, scores, margins > 0.0)
    return bool(np.isfinite(margins[known]).all() and (right == scores)[known].all())


def _pooled(sums: Array, counts: Integers, lost: int) -> Array:
    """Each candidate's mean of squares of these ``sums`` (J; ``lost`` degrees of freedom less), pulled towards that of
    all.

    A few equal answers are no certainty.
    """
    pooled = float(sums.sum() / max(counts.sum() - lost * len(counts), 1))
    return np.asarray((sums + PRIOR_ITEMS * pooled) / (counts - lost + PRIOR_ITEMS))


def _fit(values: Array, known: Mask, factors: int, iterations: int = ITERATIONS) -> _Fit:
    """Factor analysis of ``values`` (J x N, 0 where not known) by expectation maximisation.

    An entry is its candidate's mean, plus its loadings (J x F) times the item's factors (N x F, standard normal), plus
    noise of the candidate's variance. Loadings are pulled towards those of the mean candidate.
    """
    weights = known.astype(float)
    alike = _Alike.of(known)
    counts = known.sum(axis=1)
    means = values.sum(axis=1) / counts
    residuals = np.where(known, values - means[:, None], 0.0)
    scale = float((residuals**2).sum() / counts.sum())
    least = 1e-5 * scale or 1e-12
    loadings = _first_loadings(residuals, weights, scale, factors)
    noise = np.maximum((residuals**2).sum(axis=1) / counts - (loadings**2).sum(axis=1), max(0.1 * scale, least))
    prior = np.append(np.full(factors, PRIOR_LOADING_ITEMS), 0.0)
    for _ in range(iterations):
        item_means, item_covariances = _factors(residuals, alike, loadings, noise)
        spread = np.tensordot(alike.counted, item_covariances[alike.first], axes=1)
        squares = (item_means[:, :, None] * item_means[:, None, :]).reshape(len(item_means), -1)
        normal = np.empty((len(values), factors + 1, factors + 1))
        normal[:, :-1, :-1] = spread + (weights @ squares).reshape(spread.shape)
        normal[:, :-1, -1] = normal[:, -1, :-1] = weights @ item_means
        normal[:, -1, -1] = counts
        right = np.column_stack([values @ item_means, values.sum(axis=1)])
        pulled = prior * np.append(loadings.mean(axis=0), 0.0)
        solved = np.linalg.solve(normal + np.diag(prior), (right + pulled)[:, :, None])[:, :, 0]
        loadings, means = solved[:, :-1], solved[:, -1]
        residuals = values - means[:, None] * weights
        left = residuals - weights * (loadings @ item_means.T)
        open_squares = np.einsum("jf,jfg,jg->j", loadings, spread, loadings)
        noise = np.maximum(_pooled(np.einsum("jn,jn->j", left, left) + open_squares, counts, 0), least)
    item_means, item_covariances = _factors(residuals, alike, loadings, noise)
    return _Fit(means, loadings, noise, item_means, item_covariances)


def _first_loadings(residuals: Array, weights: Array, scale: float, factors: int) -> Array:
    """Loadings (J x F) to start from: the main components of the covariance over the items that two both answered."""
    both = weights @ weights.T
    covariance = (residuals @ residuals.T + PRIOR_ITEMS * scale) / (both + PRIOR_ITEMS)
    np.fill_diagonal(covariance, (residuals**2).sum(axis=1) / np.diag(both))
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors[:, -factors:] * np.sqrt(np.maximum(values[-factors:], 0.01 * scale)))


def _factors(residuals: Array, alike: _Alike, loadings: Array, noise: Array) -> tuple[Array, Array]:
    """Every item's factors given its answers: means (N x F) and covariances (N x F x F)."""
    scaled = loadings / noise[:, None]
    products = loadings[:, :, None] * scaled[:, None, :]
    precisions = np.tensordot(alike.weights, products, axes=1) + np.eye(loadings.shape[1])
    covariances = np.asarray(np.linalg.inv(precisions), dtype=float)[alike.number]
    return np.einsum("nfg,ng->nf", covariances, residuals.T @ scaled), covariances


def _spread(loadings: Array, covariances: Array) -> Array:
    """Variance (J x N) of the part of each entry that its item's factors explain, as far as these are open."""
    pairs = (loadings[:, :, None] * loadings[:, None, :]).reshape(len(loadings), -1)
    return np.asarray(pairs @ covariances.reshape(len(covariances), -1).T)
