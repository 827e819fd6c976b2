"""Points of the unit cube and parameters: nothing may be lost or shifted between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mergefront.optimizer.recipes.unit_cube import Encoder

DISTRIBUTIONS: list[BaseDistribution] = [
    FloatDistribution(0.0, 1.0),
    FloatDistribution(0.1, 1.0),
    FloatDistribution(-1.5, 1.5),
    FloatDistribution(1e-7, 0.3, log=True),
    FloatDistribution(-10.2, 10.2, step=0.1),
    IntDistribution(0, 1),
    IntDistribution(-10, 10, step=2),
    IntDistribution(1, 1000, log=True),
    IntDistribution(0, 10**6),
    CategoricalDistribution(("ties", "dare_ties", "linear")),
    CategoricalDistribution((True, None, 0.5)),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@given(uniform=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=8))
def test_every_sampled_point_is_a_valid_value_and_survives_the_round_trip(
    distribution: BaseDistribution, uniform: list[float]
) -> None:
    encoder = Encoder({"x": distribution})
    points = encoder.from_uniform(np.array(uniform)[:, None])
    assert ((points >= 0) & (points <= 1)).all()
    for point in points:
        params = encoder.decode(point)
        assert encoder.contains(params)
        assert encoder.decode(encoder.encode(params)) == params
        np.testing.assert_allclose(encoder.snap(point[None, :])[0], point, atol=1e-9)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[:9], ids=str)
def test_both_ends_are_reached_exactly(distribution: Any) -> None:
    """A weight of 0 switches an expert off only when it is exactly 0."""
    encoder = Encoder({"x": distribution})
    low, high = encoder.decode(np.array([0.0]))["x"], encoder.decode(np.array([1.0]))["x"]
    assert (low, high) == (distribution.low, distribution.high)
    kind = int if isinstance(distribution, IntDistribution) else float
    assert type(low) is kind and type(high) is kind


def test_levels_of_a_discrete_parameter_are_equally_likely() -> None:
    uniform = (np.arange(3000)[:, None] + 0.5) / 3000
    for distribution in (IntDistribution(0, 2), FloatDistribution(0, 1, step=0.5), CategoricalDistribution("abc")):
        encoder = Encoder({"x": distribution})
        values = [encoder.decode(point)["x"] for point in encoder.from_uniform(uniform)]
        assert {values.count(value) for value in set(values)} == {1000}


def test_neighbours_change_one_discrete_parameter_by_one_step_or_choice() -> None:
    space = {
        "w": FloatDistribution(0, 1),
        "k": IntDistribution(1, 5),
        "method": CategoricalDistribution(("ties", "linear", "slerp")),
    }
    encoder = Encoder(space)
    here = {"w": 0.25, "k": 5, "method": "linear"}
    found = [encoder.decode(point) for point in encoder.neighbours(encoder.encode(here))]
    assert found == [here | {"k": 4}, here | {"method": "ties"}, here | {"method": "slerp"}]


def test_values_outside_the_distribution_are_not_contained() -> None:
    encoder = Encoder({"w": FloatDistribution(0, 1), "method": CategoricalDistribution(("ties",))})
    assert encoder.contains({"w": 1.0, "method": "ties"})
    assert not encoder.contains({"w": 1.1, "method": "ties"})
    assert not encoder.contains({"w": 0.5, "method": "della"})
    assert not encoder.contains({"w": 0.5})
