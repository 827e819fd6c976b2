"""What every candidate scores on all items, from the items that each has answered: one model of all answers.

Merges of the same experts answer alike, the more so the nearer they lie; so what one of them answered says
something about what another one would have. Each answer is the candidate's mean, plus a candidate-specific weighted
sum of a few factors of the item, plus noise (``factor_analysis``; Little and Rubin, Statistical Analysis with Missing
Data, chapter 11). Whatever was answered decides what is asked next, so that the rest is missing at random. Where items
have margins whose sign is the answer, the margins are modelled, which say more than right and wrong: merges that lie
near each other have nearly the same, and an item that was not asked is right as probably as its margin is positive. A
candidate's mean over all items is that of its known and expected scores.

The stated error has three parts. The unasked items are uncertain one by one, as the model says. The candidates' means
are uncertain together: who answered the same items as its like knows nothing of the others (universal kriging:
Cressie, Statistics for Spatial Data, section 3.4). And the model may be wrong of one candidate: fitted without a
quarter of the answers in turn, it predicts these; how far they lie from what it says of them scales the first two
parts, and a candidate's mean residual, as far as it is more than noise, corrects its mean, with an error of its own
(empirical Bayes). There items that few answered count most, as the unasked ones are such. No answer is surer than so
many alike make it (``rule_of_succession``).

A candidate that came after the fit is read with the items' factors as they are, which takes a fiftieth of a fit.

Notation: J candidates, N items, F factors; ``scores`` and ``margins`` J x N with NaN where an item was not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mergefront.optimizer.arrays import Array, Integers, Mask
from mergefront.optimizer.racing.factor_analysis import (
    PARTS,
    PRIOR_ITEMS,
    Candidates,
    Cells,
    Fit,
    first_candidates,
    fit,
    pooled,
    products,
    regressions,
)
from mergefront.optimizer.scores.evaluation import Estimate, rule_of_succession

ITERATIONS = 10
"""Errors of estimates no longer change after that, though the fit does."""
HELD_OUT_ITERATIONS = 3
"""The same for errors of what was held out."""
WEIGHTED_TIMES = 2
"""How often a candidate that came later is regressed, with weights by the time before."""
SQUASH = 2.0
"""Margins m enter as asinh(SQUASH m) in units of their root mean square: what counts is how near to 0 they are."""
LEAST_VARIANCE = 1e-9
"""Of a right-or-wrong answer: margins far from 0 would leave none, and errors be measured by nothing."""
ENTRIES_AT_ONCE = 2**20
"""Of candidates by items, of which several arrays are held."""


@dataclass(frozen=True)
class _Answers:
    """``known`` (J x N) says who answered what, ``scores`` are the answers (0 elsewhere), ``least`` (J) the variance of
    an answer that so many leave possible where all of a candidate's agree. ``rest`` items more nobody was asked."""

    known: Mask
    scores: Array
    least: Array
    rest: int
    unit: float | None
    """Of margins, where these are modelled."""

    @property
    def counts(self) -> Integers:
        return np.asarray(self.known.sum(axis=1), dtype=np.int64)

    @property
    def items(self) -> int:
        return int(self.known.shape[1]) + self.rest


@dataclass(frozen=True)
class _HeldOut:
    """Every answer, by candidate: its ``rows`` (candidate), ``residuals`` of a model fitted without it, the variance
    that this model ``said``, and how much it counts among its candidate's (``shares``, which sum to 1) for the items
    that were not asked."""

    rows: Integers
    residuals: Array
    said: Array
    shares: Array

    def summed(self, entries: Array) -> Array:
        """By candidate."""
        return np.asarray(np.bincount(self.rows, entries), dtype=float)

    def biases(self, weights: Array, spreads: Array) -> tuple[Array, Array]:
        """The candidates' mean residuals by ``weights``, and the variances of these means by chance."""
        return self.summed(weights * self.residuals), self.summed(weights**2 * spreads)


@dataclass(frozen=True)
class _Errors:
    """What the errors of all fitted candidates say of those of one.

    Squared residuals exceed what was said of them by ``excess``, which counts as ``prior``; mean residuals vary by
    ``between`` beyond chance, and by ``between_unasked`` where they count as of unasked items.
    """

    excess: float
    prior: float
    between: float
    between_unasked: float

    @classmethod
    def of(cls, held_out: _HeldOut, answers: _Answers) -> _Errors:
        squares = held_out.summed(held_out.shares * held_out.residuals**2)
        said = held_out.summed(held_out.shares * held_out.said)
        found = cls(max(1.0, float(squares.sum() / said.sum())), PRIOR_ITEMS * float(said.mean()), 0.0, 0.0)
        spreads = found.spreads(held_out, answers)
        even = 1.0 / answers.counts[held_out.rows]
        between, between_unasked = (
            max(0.0, float(np.mean(biases**2 - chance)))
            for biases, chance in (held_out.biases(weights, spreads) for weights in (even, held_out.shares))
        )
        # One standard error of this variance more: residuals that agree by chance are no model without error.
        _, chance = held_out.biases(held_out.shares, spreads)
        between_unasked += math.sqrt(2.0 / len(chance)) * float(chance.mean())
        return cls(found.excess, found.prior, between, between_unasked)

    def scale(self, held_out: _HeldOut) -> Array:
        """By how much each candidate's squared residuals exceed the variances that were said (J), pulled towards that
        of all, which is never below 1."""
        squares = held_out.summed(held_out.shares * held_out.residuals**2)
        said = held_out.summed(held_out.shares * held_out.said)
        counts = 1.0 / held_out.summed(held_out.shares**2)
        return np.asarray((counts * squares + self.prior * self.excess) / (counts * said + self.prior))

    def spreads(self, held_out: _HeldOut, answers: _Answers) -> Array:
        """The variance of every answer."""
        rows = held_out.rows
        return np.maximum(self.scale(held_out)[rows] * held_out.said, answers.least[rows])


@dataclass(frozen=True)
class _Unasked:
    """Sums over the items that a candidate was not asked (J): expected scores, variances, and by how much scores change
    with the modelled value, by cell (J x C) and of all (J)."""

    expected: Array
    variances: Array
    slopes: Array
    all_slopes: Array


@dataclass(frozen=True)
class JointModel:
    """A model of what some candidates answered; they are ``estimates``, in their order.

    ``places`` (N) are the columns that any of them answered, in the model's order; ``items`` is how many there are in
    all, ``unit`` that of margins, None where scores are modelled.
    """

    estimates: tuple[Estimate, ...]
    places: Integers
    items: int
    unit: float | None
    fit: Fit
    cells: Cells
    errors: _Errors
    answers_variance: float

    @classmethod
    def of(cls, scores: Array, margins: Array | None, items: int) -> JointModel | None:
        """Of candidates (rows of ``scores``), each with at least one answer; None where there is nothing to model: of
        fewer than two, or of answers that do not differ.

        ``margins`` decide the scores: 1 above 0 and 0 below, for every answer.
        """
        if len(scores) < 2:
            return None
        places = np.flatnonzero((~np.isnan(scores)).any(axis=0))
        order, cells = Cells.of(~np.isnan(scores[:, places]))
        places = places[order]
        scores = scores[:, places]
        known = ~np.isnan(scores)
        variance = _answers_variance(scores[known])
        least = rule_of_succession(known.sum(axis=1)) * variance
        found = np.where(known, scores, 0.0)
        if not _squares(known, found).any():
            return None
        unit, values = None, found
        if margins is not None:
            values = np.where(known, margins[:, places], 0.0)
            unit = math.sqrt(float((values**2).sum()) / float(known.sum())) or 1.0
            values = _squashed(values, unit)
        answers = _Answers(known, found, least, items - len(places), unit)
        centres = values.sum(axis=1) / answers.counts
        values = np.where(known, values - centres[:, None], 0.0)
        fitted = fit(values, cells.asked, cells, ITERATIONS, first_candidates(values, cells.asked, cells))
        held_out = _held_out(answers, values, centres, cells)
        errors = _Errors.of(held_out, answers)
        fitted = Fit(fitted.candidates.moved(centres), fitted.factors, fitted.covariances)
        unasked = _unasked(answers, fitted, cells, errors.scale(held_out))
        estimates = _estimates(answers, held_out, errors, unasked, _variances_of_means(fitted, cells, unasked))
        return cls(tuple(estimates), places, items, unit, fitted, cells, errors, variance)

    def read(self, places: Integers, scores: Array, margins: Array | None) -> Estimate:
        """The estimate of another candidate, from its answers and their columns (n).

        It learns from the candidates that were fitted, and they learn nothing from it.
        """
        columns = self._columns(places)
        order = np.argsort(columns, kind="stable")
        columns, scores, count = columns[order], scores[order], len(places)
        new = int((columns == len(self.places)).sum())
        fitted, cells = (self.fit.and_new(new), self.cells.and_new(new)) if new else (self.fit, self.cells)
        columns[count - new :] += np.arange(new)
        known = np.isin(np.arange(len(cells.number)), columns)[None]
        answered = np.zeros(known.shape)
        answered[0, columns] = scores
        least = rule_of_succession(np.array([count])) * self.answers_variance
        answers = _Answers(known, answered, least, self.items - known.shape[1], self.unit)
        values = scores if margins is None or self.unit is None else _squashed(margins[order], self.unit)
        read = self._regressed(values, columns, fitted, cells)

        number = cells.number[columns]
        parts = np.arange(count) % PARTS + 1
        modelled = (read.loadings[parts] * fitted.factors[columns]).sum(axis=1) + read.means[parts]
        spread = read.spread(fitted.covariances)
        expected, said, _ = _expected(modelled, spread[parts, number], self.unit)
        asked = cells.asked.sum(axis=0)[number] + 1.0
        shares = (len(cells.asked) + 2.0 - asked) / asked
        held_out = _HeldOut(np.zeros(count, dtype=np.int64), scores - expected, said, shares / shares.sum())
        own = Fit(read[:1], fitted.factors, fitted.covariances)
        unasked = _unasked(answers, own, cells, self.errors.scale(held_out))

        # What it expects moves with the means of those that were fitted, and with its own, which moves with theirs.
        share = unasked.all_slopes[0] / count
        weights = share * np.bincount(number, minlength=len(cells.sizes)) - unasked.slopes[0]
        explained = cells.asked @ (weights[:, None] * (fitted.covariances @ read.loadings[0]))
        moves = (explained * fitted.candidates.loadings).sum(axis=1) / fitted.candidates.noise
        variance = share**2 * spread[0, number].sum() + moves @ self._covariance_of_means @ moves
        return _estimates(answers, held_out, self.errors, unasked, np.array([variance]))[0]

    def _regressed(self, values: Array, columns: Integers, fitted: Fit, cells: Cells) -> Candidates:
        """A candidate by its ``values`` of some columns (n), and by those that are left without each part of them.

        Least squares on the items' expected factors, weighted by how well these are known.
        """
        count, number = len(values), cells.number[columns]
        parts = np.arange(count) % PARTS
        kept = np.vstack([np.ones(count), *(parts != part for part in range(PARTS))]).astype(float)
        kept[~kept.any(axis=1)] = 1.0
        extended = np.column_stack([fitted.factors[columns], np.ones(count)])
        centre, weights = float(values.mean()), kept
        for _ in range(WEIGHTED_TIMES):
            weighted = weights * (values - centre)
            solved, _ = regressions(weights @ products(extended), weighted @ extended, self._pull)
            found = Candidates(solved[:, -1], solved[:, :-1], np.zeros(len(kept)))
            explained = found.spread(fitted.covariances)[:, number]
            squares = (values - centre - solved @ extended.T) ** 2
            left = np.maximum((kept * (squares - explained)).sum(axis=1), 0.0)
            noise = (left + PRIOR_ITEMS * self._noise) / (kept.sum(axis=1) + PRIOR_ITEMS)
            weights = kept / (1.0 + explained / noise[:, None])
        return Candidates(found.means + centre, found.loadings, noise)

    def _columns(self, places: Integers) -> Integers:
        """Where columns stand in the model; those that it does not know, behind its own."""
        where = np.full(max(int(places.max()), int(self.places.max())) + 1, len(self.places))
        where[self.places] = np.arange(len(self.places))
        return where[places]

    @cached_property
    def _pull(self) -> Array:
        return np.asarray(self.fit.candidates.loadings.mean(axis=0))

    @cached_property
    def _noise(self) -> float:
        return float(np.average(self.fit.candidates.noise, weights=self.cells.asked @ self.cells.sizes))

    @cached_property
    def _covariance_of_means(self) -> Array:
        return np.asarray(np.linalg.inv(_information(self.fit, self.cells)), dtype=float)


def joint_estimates(scores: Array, margins: Array | None = None) -> list[Estimate]:
    """One estimate for each candidate (row of ``scores``, J x N); each must have answered at least one item.

    ``margins`` are used where they decide the scores.
    """
    scores = np.asarray(scores, dtype=float)
    known = ~np.isnan(scores)
    if not known.any(axis=1).all():
        raise ValueError("every candidate must have answered at least one item")
    if margins is not None and not decisive(scores[known], margins[known]):
        margins = None
    model = JointModel.of(scores, margins, scores.shape[1])
    return plain_estimates(scores, scores.shape[1]) if model is None else list(model.estimates)


def plain_estimates(scores: Array, items: int) -> list[Estimate]:
    """The same from each candidate's own answers, of so many ``items`` in all."""
    known = ~np.isnan(scores)
    counts, squares = known.sum(axis=1), _squares(known, np.where(known, scores, 0.0))
    least = rule_of_succession(counts) * _answers_variance(scores[known])
    variances = np.maximum(pooled(squares, counts, 1), least) * (1.0 / counts - 1.0 / items)
    return _with_samples(np.nansum(scores, axis=1) / counts, variances, squares, counts, least, items)


def decisive(scores: Array, margins: Array) -> bool:
    """Whether the margins of some answers are all there and their sign is the score; at 0 it may be either."""
    right = np.where(margins == 0.0, scores, margins > 0.0)
    return bool(np.isfinite(margins).all() and (right == scores).all())


def _squares(known: Mask, scores: Array) -> Array:
    """The sum of squares of each candidate's answers about their mean (J)."""
    means = scores.sum(axis=1) / known.sum(axis=1)
    return np.asarray((np.where(known, scores - means[:, None], 0.0) ** 2).sum(axis=1))


def _answers_variance(answers: Array) -> float:
    """What the rule of succession's variance of a right-or-wrong answer is multiplied by: 1, or for other scores the
    variance of all candidates' answers together."""
    right_or_wrong = bool(((answers == 0.0) | (answers == 1.0)).all())
    return 1.0 if right_or_wrong else float(answers.var())


def _held_out(answers: _Answers, values: Array, centres: Array, cells: Cells) -> _HeldOut:
    """Every answer as a fit without it says; each candidate's are held out in ``PARTS`` parts.

    An item that many answered is predicted better than one that few did, and those that were not asked are of these:
    an answer's share is how often its item was not asked for each time that it was.
    """
    rows, columns = np.nonzero(answers.known)
    turn = (cells.parts + np.arange(len(values))[:, None]) % PARTS
    turns = turn[rows, cells.number[columns]]
    expected, said = np.empty(len(rows)), np.empty(len(rows))
    for part in range(PARTS):
        kept = np.where(turn == part, 0.0, cells.asked)
        alone = kept @ cells.sizes == 0.0
        kept[alone] = cells.asked[alone]
        left = values * kept[:, cells.number]
        found = fit(left, kept, cells, HELD_OUT_ITERATIONS, first_candidates(left, kept, cells))
        out = np.flatnonzero(turns == part)
        row, column = rows[out], columns[out]
        modelled = (found.candidates.loadings @ found.factors.T)[row, column] + found.candidates.means[row]
        spread = found.candidates.spread(found.covariances)[row, cells.number[column]]
        expected[out], said[out], _ = _expected(modelled + centres[row], spread, answers.unit)
    asked = cells.asked.sum(axis=0)
    odds = cells.asked * ((len(values) - asked + 1.0) / asked)
    odds /= (odds @ cells.sizes)[:, None]
    return _HeldOut(rows, answers.scores[rows, columns] - expected, said, odds[rows, cells.number[columns]])


def _expected(modelled: Array, variances: Array, unit: float | None) -> tuple[Array, Array, Array]:
    """Scores as expected of values ``modelled`` with ``variances``, their own variances, and by how much they change
    with the values; where margins are modelled, how probably each is above 0."""
    if unit is None:
        return modelled, variances, np.ones(modelled.shape)
    from scipy.special import ndtr

    errors = np.sqrt(variances)
    distances = modelled / errors
    chances = ndtr(distances)
    slopes = np.exp(distances**2 / -2.0) / (math.sqrt(2.0 * math.pi) * errors)
    return chances, np.maximum(chances * (1.0 - chances), LEAST_VARIANCE), slopes


def _unasked(answers: _Answers, fitted: Fit, cells: Cells, scale: Array) -> _Unasked:
    """What a fit says of the items that each candidate was not asked; candidates are taken a few at a time."""
    own, count = fitted.candidates, len(answers.known)
    spread = own.spread(fitted.covariances)
    nobody = (own.loadings**2).sum(axis=1) + own.noise
    expected, variances, slopes = _expected(own.means, nobody, answers.unit)
    variances = answers.rest * np.maximum(scale * variances, answers.least)
    expected, rest_slopes = answers.rest * expected, answers.rest * slopes
    by_cell = np.empty((count, len(cells.sizes)))
    step = max(1, ENTRIES_AT_ONCE // len(cells.number))
    for few in (slice(start, start + step) for start in range(0, count, step)):
        modelled = own.means[few, None] + own.loadings[few] @ fitted.factors.T
        open_ones = ~answers.known[few]
        scores, said, changes = _expected(modelled, spread[few][:, cells.number], answers.unit)
        expected[few] += (scores * open_ones).sum(axis=1)
        said = np.maximum(scale[few, None] * said, answers.least[few, None])
        variances[few] += (said * open_ones).sum(axis=1)
        by_cell[few] = np.add.reduceat(changes * open_ones, cells.starts, axis=1)
    return _Unasked(expected, variances, by_cell, by_cell.sum(axis=1) + rest_slopes)


def _information(fitted: Fit, cells: Cells) -> Array:
    """The inverse covariance of the candidates' means (J x J), estimated by generalised least squares from the answers,
    whose items' factors are common to all who answered them."""
    common = _explained(fitted.candidates.loadings / fitted.candidates.noise[:, None], fitted) * cells.asked[:, None]
    counts, count = cells.asked @ cells.sizes, len(common)
    sized = (common * cells.sizes).reshape(count, -1)
    return np.asarray(np.diag(counts / fitted.candidates.noise) - sized @ common.reshape(count, -1).T)


def _explained(loadings: Array, fitted: Fit) -> Array:
    """Loadings (J x F) in units of what is open of the items' factors (J x F x C)."""
    roots = np.linalg.cholesky(fitted.covariances).transpose(1, 2, 0)
    size = loadings.shape[1]
    return np.asarray((loadings @ roots.reshape(size, -1)).reshape(len(loadings), size, -1))


def _variances_of_means(fitted: Fit, cells: Cells, unasked: _Unasked) -> Array:
    """What not knowing the candidates' means adds to the variance of each one's sum of unasked scores (J): a prediction
    moves with all of them."""
    candidates, count = fitted.candidates, len(cells.asked)
    moved = (_explained(candidates.loadings, fitted) * unasked.slopes[:, None]).reshape(count, -1)
    common = _explained(candidates.loadings / candidates.noise[:, None], fitted) * cells.asked[:, None]
    moves = np.diag(unasked.all_slopes) - moved @ common.reshape(count, -1).T
    return np.asarray(np.einsum("jk,jk->j", moves, np.linalg.solve(_information(fitted, cells), moves.T).T))


def _estimates(
    answers: _Answers, held_out: _HeldOut, errors: _Errors, unasked: _Unasked, of_means: Array
) -> list[Estimate]:
    """Everything together; ``of_means`` (J) is what not knowing the means adds to the variances of the sums."""
    counts, items = answers.counts, answers.items
    spreads, open_share = errors.spreads(held_out, answers), 1.0 - counts / items
    biases, chance = held_out.biases(1.0 / counts[held_out.rows], spreads)
    means = (answers.scores.sum(axis=1) + unasked.expected) / items
    means += open_share * biases * errors.between / (errors.between + chance)
    _, chance = held_out.biases(held_out.shares, spreads)
    variances = (unasked.variances + errors.scale(held_out) * of_means) / items**2
    variances += open_share**2 * errors.between_unasked * chance / (errors.between_unasked + chance)
    variances = np.maximum(variances, answers.least * (1.0 / counts - 1.0 / items))
    squares = _squares(answers.known, answers.scores)
    return _with_samples(means, variances, squares, counts, answers.least, items)


def _with_samples(
    means: Array, variances: Array, squares: Array, counts: Integers, least: Array, items: int
) -> list[Estimate]:
    """Estimates with these variances, and with those of the items as a sample added."""
    own = np.maximum(squares / np.maximum(counts - 1, 1), least)
    return [
        Estimate(float(mean), math.sqrt(variance + spread / items), math.sqrt(variance))
        for mean, variance, spread in zip(means, variances, own, strict=True)
    ]


def _squashed(margins: Array, unit: float) -> Array:
    """The margins as they are modelled."""
    return np.asarray(np.arcsinh(SQUASH * margins / unit) / SQUASH)
