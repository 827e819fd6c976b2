"""The front of estimates is that of exact scores where there is no noise, and drops only who is probably worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import ndtri

from mergefront.optimizer.racing.noisy_front import dominance, likely_front
from mergefront.optimizer.scores.pareto import nondominated


@given(arrays(float, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.integers(0, 3).map(float)))
def test_without_noise_it_is_the_front(means: np.ndarray) -> None:
    assert likely_front(means, np.zeros_like(means)) == nondominated(means).tolist()


def test_noise_keeps_who_is_dominated_by_a_hair() -> None:
    means = [[0.50, 0.50], [0.51, 0.51], [0.30, 0.30]]
    assert likely_front(means, np.zeros((3, 2))) == [False, True, False]
    assert likely_front(means, np.full((3, 2), 0.03)) == [True, True, False]


def test_the_chance_of_dominance_is_that_of_drawing_it() -> None:
    means, errors = np.array([[0.5, 0.6], [0.45, 0.62]]), np.array([[0.03, 0.02], [0.02, 0.05]])
    drawn = means + errors * np.random.default_rng(0).normal(size=(200_000, 2, 2))
    assert dominance(means, errors)[0, 1] == pytest.approx((drawn[:, 0] >= drawn[:, 1]).all(axis=1).mean(), abs=0.005)


@pytest.mark.parametrize(("chance", "stays"), [(0.5, True), (0.64, True), (0.69, False), (0.9, False)])
def test_who_is_dominated_with_two_chances_in_three_is_left_out(chance: float, stays: bool) -> None:
    """The limit is measured: below it fronts lose hypervolume, above it they fill with candidates behind them."""
    lead = float(ndtri(chance)) * np.hypot(0.03, 0.04)
    assert likely_front([[0.5], [0.5 + lead]], [[0.03], [0.04]]) == [stays, True]
