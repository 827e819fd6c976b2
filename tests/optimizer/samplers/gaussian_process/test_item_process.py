"""A score's process by its items says what the process of the score says, with fewer points."""

from __future__ import annotations

import numpy as np
import pytest

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.samplers.common.units import compress_tail
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process
from mergefront.optimizer.samplers.gaussian_process.item_process import fit_by_items
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, MATERN_WITH_TREND, Kernel

REFERENCE = -0.1


def margins_at(points: Array, items: int = 40, unit: float = 1.0) -> Array:
    """Of a merge with these weights: each item follows them in its own way, and all follow what they have in common."""
    rng = np.random.default_rng(5)
    ease, own = rng.normal(1.0, 2.0, items), rng.normal(0.0, 2.0, (points.shape[1], items))
    common = -8.0 * ((points - 0.6) ** 2).sum(axis=1)
    return np.asarray(unit * (ease + (points - 0.5) @ own + common[:, None]))


def scores_of(margins: Array) -> Array:
    """Normalised: a share of 0.2 is the worst anchor's, one of 0.7 the best one's."""
    return np.asarray(((margins > 0).mean(axis=1) - 0.2) / 0.5)


@pytest.mark.parametrize("unit", [1.0, 0.01])
@pytest.mark.parametrize("kernel", [MATERN, MATERN_WITH_TREND])
def test_it_predicts_better_than_the_score_alone(kernel: Kernel, unit: float) -> None:
    rng = np.random.default_rng(0)
    points, unknown = rng.random((400, 3)), np.full(14, np.nan)
    right = scores_of(margins_at(points))
    errors, within = [], []
    for seed in range(6):
        x = np.random.default_rng(seed).random((14, 3))
        margins = margins_at(x, unit=unit)
        by_items = fit_by_items(x, scores_of(margins), margins, -9.0, kernel)
        assert by_items is not None
        found = [
            one.posterior(points) for one in (by_items, fit_gaussian_process(x, scores_of(margins), unknown, kernel))
        ]
        errors.append([np.sqrt(np.mean((mean - right) ** 2)) for mean, _ in found])
        within.append([np.mean(np.abs(mean - right) < 2 * np.sqrt(variance)) for mean, variance in found])
    by_items_error, alone_error = np.mean(errors, axis=0)
    assert by_items_error < 0.8 * alone_error
    by_items_within, alone_within = np.mean(within, axis=0)
    assert by_items_within > max(0.8, alone_within - 0.05), "it is as sure as it may be"


@pytest.mark.parametrize("kernel", [MATERN, MATERN_WITH_TREND])
@pytest.mark.parametrize("reference", [-9.0, 0.4])
def test_it_has_the_scores_that_were_observed_those_below_the_reference_compressed(
    kernel: Kernel, reference: float
) -> None:
    x = np.random.default_rng(1).random((10, 3))
    margins = margins_at(x)
    y = scores_of(margins)
    assert y.min() < 0.3
    process = fit_by_items(x, y, margins, reference, kernel)
    assert process is not None
    np.testing.assert_allclose(process.posterior(x)[0], compress_tail(y, np.array(reference)), atol=0.03)


@pytest.mark.parametrize("kernel", [MATERN, MATERN_WITH_TREND])
@pytest.mark.parametrize("reference", [-9.0, 0.6])
def test_its_gradient_is_exact(kernel: Kernel, reference: float) -> None:
    """With the reference at 0.6 much is below it, where the slope is another."""
    x = np.random.default_rng(2).random((12, 3))
    margins = margins_at(x)
    process = fit_by_items(x, scores_of(margins), margins, reference, kernel)
    assert process is not None and process.expected is not None
    expected, steps = process.expected, 1e-6 * np.eye(3)
    for point in np.random.default_rng(3).random((20, 3)):
        numeric = (expected.values(point + steps) - expected.values(point - steps)) / 2e-6
        np.testing.assert_allclose(expected.gradient(point), numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [lambda y: y + 0.1 * np.arange(len(y)) ** 2, lambda y: np.where(np.arange(len(y)) == 3, y + 0.02, y)],
    ids=["another number", "one item counted otherwise"],
)
def test_a_score_that_is_no_share_of_right_answers_has_none(change: object) -> None:
    """A mean of several tasks, say, or a score that was restated: its items would predict something else."""
    assert callable(change)
    x = np.random.default_rng(4).random((8, 3))
    margins = margins_at(x)
    assert fit_by_items(x, scores_of(margins), margins, REFERENCE) is not None
    assert fit_by_items(x, change(scores_of(margins)), margins, REFERENCE) is None


def test_scores_that_are_all_one_have_none() -> None:
    x = np.random.default_rng(4).random((8, 3))
    assert fit_by_items(x, np.zeros(8), np.full((8, 5), -1.0), REFERENCE) is None


def test_an_item_that_never_changes_says_so() -> None:
    """Some are right in every merge, to the digit: no variance to divide by."""
    x = np.random.default_rng(6).random((8, 3))
    margins = margins_at(x)
    margins[:, 0], margins[:, 1] = 4.0, -4.0
    process = fit_by_items(x, scores_of(margins), margins, REFERENCE)
    assert process is not None
    mean, variance = process.posterior(np.random.default_rng(7).random((50, 3)))
    assert np.isfinite(mean).all() and np.isfinite(variance).all()
