"""The front of estimates is that of exact scores where there is no noise, and drops only who is probably worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

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
