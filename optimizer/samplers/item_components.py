"""What the items of a study's tasks have in common: many margins of an evaluation as a few smooth numbers.

A score is one coarse number; behind it are hundreds of margins that move smoothly with the coefficients of a merge,
and together. Their principal components are what a surrogate can learn from a dozen evaluations, and the scores are
a known function of them (composite Bayesian optimisation: Astudillo and Frazier 2019, "Bayesian Optimization of
Composite Functions"; the reduction after Higdon et al. 2008, "Computer Model Calibration Using High-Dimensional
Output").

    t = asinh((margin - middle) / scale)    per task; a collapsed merge's margins lie any distance away
    t ~ centre + c V                         c: r components of an evaluation, V: r x items
    score = mean over items of link(t)       logistic for right or wrong, the inverse of the first line for a loss

Items that an evaluation did not ask are filled in by the components themselves, iteratively.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from mergefront.optimizer.evaluation import ItemScores

Array = NDArray[np.float64]

COMPONENTS = 6
"""At most as many."""
LARGEST_TASK = 512
"""Of more items a task is represented by that many, evenly spaced in difficulty."""
FEWEST_ITEMS = 8
FILLING_ROUNDS = 20
AFFINE = 0.999
"""Correlation of scores and margins above which a score is an affine function of its margin (a loss)."""
_PI_OVER_EIGHT = np.pi / 8


@dataclass(frozen=True)
class ItemTable:
    """One objective's items over ``n`` evaluations: margins and scores, ``n x items``, NaN where not asked."""

    margins: Array
    scores: Array

    @property
    def binary(self) -> bool:
        known = self.scores[~np.isnan(self.scores)]
        return bool(np.isin(known, (0.0, 1.0)).all())


def item_table(evaluations: Sequence[ItemScores | None]) -> ItemTable | None:
    """The table of evaluations that may have asked different items, or None when there is nothing smooth in it.

    Without margins the scores themselves are modelled, unless they are only right and wrong.
    """
    known = [items for items in evaluations if items is not None]
    if len(known) < 2:
        return None
    column = {identifier: None for items in known for identifier in items.ids}
    place = {identifier: i for i, identifier in enumerate(column)}
    if len(place) < FEWEST_ITEMS:
        return None
    with_margins = all(items.margins is not None for items in known)
    margins = np.full((len(evaluations), len(place)), np.nan)
    scores = np.full_like(margins, np.nan)
    for row, items in enumerate(evaluations):
        if items is None:
            continue
        at = [place[identifier] for identifier in items.ids]
        scores[row, at] = items.scores
        margins[row, at] = items.margins if with_margins and items.margins is not None else items.scores
    margins[~np.isfinite(margins)] = np.nan
    table = ItemTable(margins, scores)
    if not with_margins and table.binary:
        return None
    return _representative(table)


def _representative(table: ItemTable) -> ItemTable:
    """The table, or of many items ``LARGEST_TASK`` that were asked at all, spread evenly over the mean margin."""
    asked = ~np.isnan(table.margins).all(axis=0)
    margins, scores = table.margins[:, asked], table.scores[:, asked]
    if margins.shape[1] > LARGEST_TASK:
        order = np.argsort(np.nanmean(margins, axis=0), kind="stable")
        chosen = np.sort(order[np.linspace(0, len(order) - 1, LARGEST_TASK).round().astype(int)])
        margins, scores = margins[:, chosen], scores[:, chosen]
    return ItemTable(margins, scores)


@dataclass(frozen=True)
class TaskLink:
    """How one objective's score follows from the components: ``score(c)`` and its gradient in them."""

    centre: Array  # items
    loadings: Array  # r x items
    slope: float
    offset: float
    middle: float
    scale: float
    logistic: bool

    def moments(self, mean: Array, variance: Array) -> tuple[Array, Array]:
        """Mean and variance (each ``b``) of the score for components of these moments (each ``b x r``).

        The mean of the logistic link is moderated by the margins' variance (MacKay 1992); the variance is
        that of the link's tangent.
        """
        margins = self.centre + mean @ self.loadings  # b x items
        if self.logistic:
            spread = variance @ self.loadings**2
            flatter = 1.0 / np.sqrt(1.0 + _PI_OVER_EIGHT * self.slope**2 * spread)
            score = expit((self.slope * margins + self.offset) * flatter)
            steepness = score * (1.0 - score) * self.slope * flatter
        else:
            bounded = np.clip(margins, -20.0, 20.0)
            score = self.slope * (self.middle + self.scale * np.sinh(bounded)) + self.offset
            steepness = self.slope * self.scale * np.cosh(bounded)
        tangent = steepness @ self.loadings.T / self.loadings.shape[1]  # b x r
        return score.mean(axis=1), (tangent**2 * variance).sum(axis=1)


@dataclass(frozen=True)
class ItemComponents:
    """The components (``n x r``) of ``n`` evaluations and, per objective with items, the link back to its score."""

    components: Array
    links: Mapping[int, TaskLink]


def reduce_items(tables: Mapping[int, ItemTable], components: int = COMPONENTS) -> ItemComponents | None:
    """The common components of objectives' tables (by objective, all of ``n`` rows); None when nothing varies."""
    blocks, shapes = [], {}
    for objective, table in tables.items():
        middle = float(np.nanmedian(table.margins))
        scale = float(np.nanmedian(np.abs(table.margins - middle)))
        if not scale > 0.0:
            scale = float(np.nanstd(table.margins))
        if not scale > 0.0:
            return None
        squeezed = np.arcsinh((table.margins - middle) / scale)
        share = 1.0 / np.sqrt(squeezed.shape[1])  # every objective counts alike, however many items it has
        shapes[objective] = (middle, scale, share)
        blocks.append(squeezed * share)
    matrix = np.concatenate(blocks, axis=1)
    rank = min(components, len(matrix) - 1)
    filled, centre, loadings = _principal(matrix, rank)
    if not len(loadings):
        return None
    scores = (filled - centre) @ loadings.T
    links, start = {}, 0
    for objective, table in tables.items():
        stop = start + table.margins.shape[1]
        middle, scale, share = shapes[objective]
        links[objective] = _link(
            table, scores, centre[start:stop] / share, loadings[:, start:stop] / share, middle, scale
        )
        start = stop
    return ItemComponents(scores, links)


def _principal(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """The matrix (``n x items``) with its gaps filled, its column means and its first ``rank`` loadings."""
    missing = np.isnan(matrix)
    column_mean = np.nan_to_num(np.nanmean(matrix, axis=0))
    filled = np.where(missing, column_mean, matrix)
    rounds = FILLING_ROUNDS if missing.any() else 1
    for _ in range(rounds):
        centre = filled.mean(axis=0)
        # n is small beside the items: the n x n Gram matrix has the same components.
        values, vectors = np.linalg.eigh((filled - centre) @ (filled - centre).T)
        keep = [i for i in np.argsort(-values)[:rank] if values[i] > 1e-10 * max(values.max(), 1e-300)]
        loadings = (vectors[:, keep] / np.sqrt(values[keep])).T @ (filled - centre)
        if missing.any():
            estimate = centre + (filled - centre) @ loadings.T @ loadings
            filled = np.where(missing, estimate, matrix)
    return filled, centre, loadings


def _link(table: ItemTable, components: Array, centre: Array, loadings: Array, middle: float, scale: float) -> TaskLink:
    """The link that fits the scores best, given what the components say of the margins."""
    asked = ~np.isnan(table.scores)
    margins = (centre + components @ loadings)[asked]
    scores = table.scores[asked]
    if table.binary:
        slope, offset = _logistic_fit(margins, scores)
        return TaskLink(centre, loadings, slope, offset, middle, scale, True)
    raw = table.margins[asked]
    slope, offset = np.polyfit(raw, scores, 1) if np.ptp(raw) > 0 else (1.0, 0.0)
    return TaskLink(centre, loadings, float(slope), float(offset), middle, scale, False)


def _logistic_fit(margins: Array, right: Array) -> tuple[float, float]:
    """Slope and offset of P(right) by penalised maximum likelihood (Newton's method)."""
    theta = np.array([1.0, 0.0])
    design = np.stack([margins, np.ones_like(margins)], axis=1)
    for _ in range(30):
        probability = expit(design @ theta)
        gradient = design.T @ (right - probability) - 1e-2 * theta
        hessian = (design * (probability * (1 - probability))[:, None]).T @ design + 1e-2 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta = np.clip(theta + np.clip(step, -2.0, 2.0), [0.0, -50.0], [50.0, 50.0])
        if np.abs(step).max() < 1e-6:
            break
    return float(theta[0]), float(theta[1])
