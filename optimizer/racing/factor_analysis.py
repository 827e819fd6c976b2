"""Factor analysis of answers of which most are missing, by expectation maximisation (Rubin and Thayer 1982).

An answer is its candidate's mean, plus the candidate's loadings times the item's factors (standard normal), plus noise
of the candidate's variance. What an item's factors are known to be depends on who answered it, so that one matrix is
inverted for all items that the same candidates answered (``Cells``), and not one for each item.

Notation: J candidates, N items in C cells, F factors; ``values`` J x N with 0 where an item was not asked, ``asked``
J x C with 1 where the items of a cell were.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from mergefront.optimizer.arrays import Array, Integers, Mask

FACTORS = 8
"""At most, no more than one for two candidates, and as the square root of the answers of one allows. On 1,000 items of
merges of four kinds of networks 4 are too few, 12 no better; of 16 answers 3 say more than 8."""
STEP = 1.8
"""Each step goes so many times as far as the maximum that it found (over-relaxation, Salakhutdinov and Roweis 2003):
ten such steps reach what twenty plain ones do. The last is a plain one, since the others swing about what plain ones
reach at once."""
PRIOR_ITEMS = 4.0
"""A candidate's variance is pulled towards that of all, as if so many items had said so."""
PRIOR_LOADING_ITEMS = 3.0
"""The same for its loadings, towards those of the mean candidate."""
PARTS = 4
"""Into which the items that the same candidates answered are divided, so that parts can be left out."""


@dataclass(frozen=True)
class Cells:
    """Items in the order of their cells: the same candidates answered the items of one, which are of one part.

    ``asked`` (J x C) says who; ``sizes``, ``starts`` and ``parts`` (C) how many items, from which one on and of which
    part; ``number`` (N) is each item's cell.
    """

    asked: Array
    sizes: Integers
    starts: Integers
    parts: Integers
    number: Integers

    @classmethod
    def of(cls, known: Mask) -> tuple[Integers, Cells]:
        """An order of the items of ``known`` (J x N), and their cells in this order."""
        packed = np.ascontiguousarray(np.packbits(known, axis=0).T)
        kinds = np.unique(packed.view(np.dtype((np.void, packed.shape[1]))).ravel(), return_inverse=True)[1]
        parts = np.empty(len(kinds), dtype=np.int64)
        parts[np.argsort(kinds, kind="stable")] = np.arange(len(kinds)) % PARTS
        order = np.lexsort((parts, kinds))
        starts = np.flatnonzero(np.diff((kinds * PARTS + parts)[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        first = order[starts]
        number = np.repeat(np.arange(len(starts)), sizes)
        return order, cls(known[:, first].astype(float), sizes, starts, parts[first], number)

    def and_new(self, items: int) -> Cells:
        """The same and a cell of so many items that nobody answered."""
        return Cells(
            np.pad(self.asked, ((0, 0), (0, 1))),
            np.append(self.sizes, items),
            np.append(self.starts, len(self.number)),
            np.append(self.parts, 0),
            np.append(self.number, np.full(items, len(self.sizes))),
        )


@dataclass(frozen=True)
class Candidates:
    """``means`` and ``noise`` (variances) (J) and ``loadings`` (J x F)."""

    means: Array
    loadings: Array
    noise: Array

    def __getitem__(self, few: slice) -> Candidates:
        return Candidates(self.means[few], self.loadings[few], self.noise[few])

    def moved(self, by: Array) -> Candidates:
        """The same with means greater ``by`` so much (J)."""
        return Candidates(self.means + by, self.loadings, self.noise)

    def spread(self, covariances: Array) -> Array:
        """The variance (J x C) of an answer whose item's factors are known with ``covariances`` (C x F x F)."""
        pairs = (self.loadings[:, :, None] * self.loadings[:, None, :]).reshape(len(self.loadings), -1)
        return np.asarray(pairs @ covariances.reshape(len(covariances), -1).T + self.noise[:, None])


@dataclass(frozen=True)
class Fit:
    """The candidates, and the items' factors: means ``factors`` (N x F), ``covariances`` by cell (C x F x F)."""

    candidates: Candidates
    factors: Array
    covariances: Array

    def and_new(self, items: int) -> Fit:
        """The same and so many items that nobody answered, of a cell of their own."""
        size = self.factors.shape[1]
        factors = np.vstack([self.factors, np.zeros((items, size))])
        return Fit(self.candidates, factors, np.concatenate([self.covariances, np.eye(size)[None]]))


def fit(values: Array, asked: Array, cells: Cells, iterations: int, start: Candidates) -> Fit:
    """So many steps from ``start``. ``asked`` may say less than ``cells`` do; ``values`` are 0 accordingly."""
    counts = asked @ cells.sizes
    squares = np.einsum("jn,jn->j", values, values)
    least = 1e-5 * float(squares.sum() / counts.sum()) or 1e-12
    found = start
    for step in [*[STEP] * (iterations - 1), 1.0]:
        factors, covariances = _factors(values, asked, cells, found)
        extended = np.column_stack([factors, np.ones(len(factors))])
        moments = np.add.reduceat(products(extended), cells.starts, axis=0)
        moments += cells.sizes[:, None] * _products_of_errors(covariances)
        right = values @ extended
        solved, normal = regressions(asked @ moments, right, found.loadings.mean(axis=0))
        left = squares - 2.0 * (solved * right).sum(axis=1) + np.einsum("jf,jfg,jg->j", solved, normal, solved)
        noise = np.maximum(pooled(left, counts, 0), least)
        found = Candidates(
            found.means + step * (solved[:, -1] - found.means),
            found.loadings + step * (solved[:, :-1] - found.loadings),
            np.maximum(found.noise * (noise / found.noise) ** step, least),
        )
    return Fit(found, *_factors(values, asked, cells, found))


def first_candidates(values: Array, asked: Array, cells: Cells) -> Candidates:
    """Where to start: the main components of the covariance over the items that two both answered."""
    both = (asked * cells.sizes) @ asked.T
    counts = np.diag(both)
    factors = max(min(FACTORS, (len(values) - 1) // 2, int(np.median(counts) ** 0.5) - 1), 1)
    products = values @ values.T
    squares = np.diag(products).copy()
    scale = float(squares.sum() / counts.sum())
    covariance = (products + PRIOR_ITEMS * scale) / (both + PRIOR_ITEMS)
    np.fill_diagonal(covariance, squares / counts)
    sizes, vectors = np.linalg.eigh(covariance)
    loadings = vectors[:, -factors:] * np.sqrt(np.maximum(sizes[-factors:], 0.01 * scale))
    noise = np.maximum(squares / counts - (loadings**2).sum(axis=1), 0.1 * scale or 1e-12)
    return Candidates(np.zeros(len(values)), loadings, noise)


def regressions(normal: Array, right: Array, pull: Array) -> tuple[Array, Array]:
    """Loadings and, last, means of candidates by least squares (J x (F + 1)), and ``normal`` unpacked.

    ``normal`` has the sums of products of their items' factors and 1 (packed, J x (F + 1)(F + 2) / 2), ``right`` those
    with their answers (J x (F + 1)). Loadings are pulled towards ``pull`` (F).
    """
    width = right.shape[1]
    whole = normal[:, _packing(width)[2]]
    prior = np.append(np.full(width - 1, PRIOR_LOADING_ITEMS), 0.0)
    solved = np.einsum("jfg,jg->jf", inverse(whole + np.diag(prior)), right + prior * np.append(pull, 0.0))
    return solved, whole


def _products_of_errors(covariances: Array) -> Array:
    """What errors of factors (covariances, n x F x F) add to the products of the factors and 1, packed."""
    size = covariances.shape[1]
    rows, columns, _ = _packing(size + 1)
    inside = columns < size
    found = np.zeros((len(covariances), len(rows)))
    found[:, inside] = covariances[:, rows[inside], columns[inside]]
    return found


def pooled(sums: Array, counts: Array, lost: int) -> Array:
    """Each candidate's mean of squares of these ``sums`` (J; ``lost`` degrees of freedom less), pulled towards that of
    all.

    A few equal answers are no certainty.
    """
    of_all = float(sums.sum() / max(counts.sum() - lost * len(counts), 1))
    return np.asarray((sums + PRIOR_ITEMS * of_all) / (counts - lost + PRIOR_ITEMS))


def inverse(matrices: Array) -> Array:
    """Of symmetric positive definite matrices (n x F x F), all at once (Gauss-Jordan): LAPACK takes one at a time."""
    left = matrices.transpose(1, 2, 0).copy()
    for place in range(len(left)):
        pivot = 1.0 / left[place, place]
        row = left[place] * pivot
        column = left[:, place].copy()
        left -= column[:, None] * row
        left[place] = row
        left[:, place] = -column * pivot
        left[place, place] = pivot
    return np.ascontiguousarray(left.transpose(2, 0, 1))


def _factors(values: Array, asked: Array, cells: Cells, found: Candidates) -> tuple[Array, Array]:
    """Every item's factors given its answers: means (N x F) and, by cell, covariances (C x F x F)."""
    scaled = found.loadings / found.noise[:, None]
    size = scaled.shape[1]
    products = (found.loadings[:, :, None] * scaled[:, None, :]).reshape(len(scaled), -1)
    covariances = inverse((asked.T @ products).reshape(-1, size, size) + np.eye(size))
    pulls = values.T @ scaled - (asked.T @ (found.means[:, None] * scaled))[cells.number]
    return np.einsum("nfg,ng->nf", covariances[cells.number], pulls), covariances


def products(rows: Array) -> Array:
    """The products of each row's numbers (n x k), packed: those on and above the diagonal (n x k (k + 1) / 2)."""
    first, second, _ = _packing(rows.shape[1])
    return np.asarray(rows[:, first] * rows[:, second])


@cache
def _packing(width: int) -> tuple[Integers, Integers, Integers]:
    """Of a symmetric matrix: rows and columns of its packed entries, and where among these each of its own stands."""
    rows, columns = np.triu_indices(width)
    places = np.empty((width, width), dtype=np.int64)
    places[rows, columns] = places[columns, rows] = np.arange(len(rows))
    return rows, columns, places
