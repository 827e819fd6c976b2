"""Differential evolution, elites and the Fisher screen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.samplers.common.variation import (
    binomial_crossover,
    elites_by_hypervolume,
    elites_by_sum,
    mutants,
)
from mergefront.optimizer.samplers.mmmo.screening import fisher_information, screen


@given(seed=st.integers(0, 2**32 - 1))
def test_mutants_are_a_plus_half_the_difference_of_two_other_elites(seed: int) -> None:
    elites = np.array([[0.1, 0.9], [0.5, 0.2], [0.8, 0.6], [0.0, 1.0]])
    possible = [
        np.clip(a + 0.5 * (b - c), 0, 1)
        for i, a in enumerate(elites)
        for j, b in enumerate(elites)
        for k, c in enumerate(elites)
        if len({i, j, k}) == 3
    ]
    for mutant in mutants(elites, 5, np.random.default_rng(seed)):
        assert any(np.allclose(mutant, other) for other in possible)


@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 8))
def test_crossover_takes_at_least_one_coordinate_from_the_donor(seed: int, d: int) -> None:
    children = binomial_crossover(np.ones((20, d)), np.zeros((20, d)), np.random.default_rng(seed))
    assert set(np.unique(children)) <= {0.0, 1.0}
    assert (children.sum(axis=1) >= 1).all()


def test_fewer_than_three_elites_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 3 elites, got 2"):
        mutants(np.zeros((2, 3)), 1, np.random.default_rng(0))


def test_elites_by_hypervolume_lead_with_what_the_front_would_miss_most() -> None:
    values = np.array([[0.0, 0.0], [1.0, 0.1], [0.1, 1.0], [0.98, 0.12], [0.5, 0.6]])
    order = elites_by_hypervolume(values, np.array([-0.1, -0.1]), 5).tolist()
    assert order[0] == 4 and order[-1] == 0
    assert order.index(3) > order.index(2)


def test_elites_by_hypervolume_fill_up_when_nothing_reaches_the_reference_point() -> None:
    values = np.array([[-3.0, -3.0], [-1.0, -1.0], [-2.0, -2.0]])
    assert elites_by_hypervolume(values, np.array([-0.1, -0.1]), 3).tolist() == [1, 2, 0]


def test_elites_by_sum_are_the_papers() -> None:
    assert elites_by_sum(np.array([[0.2, 0.2], [0.9, 0.0], [0.5, 0.5]]), 2).tolist() == [2, 1]


def test_the_screen_prefers_what_the_surrogate_knows_least() -> None:
    information = fisher_information(np.array([[1.0, 1.0], [0.01, 1.0], [4.0, 4.0]]))
    np.testing.assert_allclose(information, [2.0, 101.0, 0.5])
    assert screen(information, 2, "low").tolist() == [2, 0]
    assert screen(information, 2, "high").tolist() == [1, 0]
    assert screen(information, 2, "off").tolist() == [0, 1]
