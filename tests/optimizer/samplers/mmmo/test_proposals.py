"""Proposals of the two variants, without a study around them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.mmmo.merge_features import MergeFeatures
from mergefront.optimizer.samplers.mmmo.optimize_acqf import BUDGETS, maximise
from mergefront.optimizer.samplers.mmmo.proposals import Observations, crossed, fit, propose
from mergefront.optimizer.samplers.mmmo.scalarisation import chebyshev


class Bowl:
    """An acquisition whose maximum is known: at ``best``, with value 0."""

    def __init__(self, best: np.ndarray) -> None:
        self.best = best

    def values(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(-((points - self.best) ** 2).sum(axis=1))

    def value_and_gradient(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        return float(self.values(point[None, :])[0]), -2.0 * (point - self.best)


@pytest.mark.parametrize(
    "more", [{}, {"kind": CategoricalDistribution(("a", "b", "c")), "count": IntDistribution(0, 8)}]
)
def test_the_largest_value_comes_first_and_is_the_largest(more: dict[str, Any]) -> None:
    """Whatever else is in the list, the first point is what is evaluated for hours."""
    encoder = Encoder({"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0), **more})
    best = encoder.snap(np.random.default_rng(0).random((1, encoder.dimension)))[0]
    starts = encoder.snap(np.random.default_rng(1).random((40, encoder.dimension)))
    points, values = maximise(Bowl(best), starts, encoder, BUDGETS["fast"])
    np.testing.assert_allclose(points[0], best, atol=2e-4)
    assert (np.diff(values) <= 0.0).all() and values[0] > -1e-6


def test_a_rough_acquisition_leads_the_climbs_but_does_not_decide() -> None:
    encoder = Encoder({"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)})
    best, beside = np.array([0.3, 0.6]), np.array([0.33, 0.57])
    starts = encoder.snap(np.random.default_rng(1).random((40, 2)))
    exact = Bowl(best)
    points, values = maximise(exact, starts, encoder, BUDGETS["fast"], Bowl(beside))
    np.testing.assert_allclose(points[0], best, atol=2e-4)
    np.testing.assert_array_equal(values, exact.values(points))


def test_fewer_than_three_elites_have_no_mutants() -> None:
    """A mutant is one elite and the difference of two others."""
    rng, elites = np.random.default_rng(0), np.array([[0.1, 0.2], [0.5, 0.9], [0.8, 0.4]])
    targets = np.full((6, 2), 0.33)
    np.testing.assert_array_equal(crossed(elites[:2], targets, rng), targets)
    assert (crossed(elites, targets, rng) != targets).any()


@pytest.mark.parametrize("points", [0, 1, 3])
def test_a_scalarisation_is_one_number_for_each_point(points: int) -> None:
    found = chebyshev(np.full((points, 2), 0.5), np.array([0.5, 0.5]))
    assert found.shape == (points, 1) and np.allclose(found, -(0.25 + 0.05 * 0.5))


@pytest.mark.parametrize("objectives", [1, 2, 5])
def test_a_proposal_is_a_new_point_near_the_best_of_what_is_known(objectives: int) -> None:
    encoder = Encoder({name: FloatDistribution(0.0, 1.0) for name in "xy"})
    x = encoder.snap(np.random.default_rng(2).random((20, 2)))
    y = 1.0 - ((x - 0.6) ** 2).sum(axis=1, keepdims=True) * np.linspace(1.0, 2.0, objectives)
    nothing = np.zeros((0, 2))
    data = Observations(
        encoder, MergeFeatures(encoder), x, y, np.full(y.shape, np.nan), np.zeros((0, objectives)), nothing, x,
        np.full(objectives, -0.1),
    )  # fmt: skip
    found = propose(data, fit(data), BUDGETS["fast"], 0)
    assert found is not None and not (x == found.point).all(axis=1).any()
    assert np.linalg.norm(found.point - 0.6) < 0.2
    assert (found.improvement is None) == (objectives > 4)
