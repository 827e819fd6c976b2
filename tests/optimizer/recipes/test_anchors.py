"""The baselines a merge has to beat are what they say they are, whatever method is searched."""

from __future__ import annotations

import pytest

from mergefront.optimizer.recipes.anchors import BASE, TASK_ARITHMETIC, UNIFORM, anchors, expert_anchor, metric_weighted
from mergefront.optimizer.recipes.space import MergeSpace

EXPERTS = ["maths", "french", "code"]


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "task_arithmetic", "linear"])
def test_every_search_begins_with_base_experts_average_and_task_arithmetic(method: str) -> None:
    space = MergeSpace(EXPERTS, method=method, base_model="base")
    names = [anchor.name for anchor in anchors(space)]
    assert names == [BASE, *map(expert_anchor, EXPERTS), UNIFORM, TASK_ARITHMETIC]
    for anchor in anchors(space):
        assert set(anchor.params) == set(space.searched)
        assert all(space.searched[name].holds(value) for name, value in anchor.params.items())
        if not anchor.outside_space:
            assert space.recipe(anchor.params) == anchor.recipe


def test_uniform_average_of_a_sign_electing_search_is_still_the_plain_average() -> None:
    space = MergeSpace(EXPERTS, method="ties", base_model="base")
    uniform = next(anchor for anchor in anchors(space) if anchor.name == UNIFORM)
    assert uniform.outside_space
    assert uniform.recipe.method == "linear"
    assert set(uniform.recipe.params.values()) == {1 / 3}


def test_experts_are_points_of_the_space_only_where_density_can_be_one() -> None:
    whole = MergeSpace(EXPERTS, method="ties", parameters={"weight": [0, 1], "density": [0.1, 1]})
    half = MergeSpace(EXPERTS, method="ties", parameters={"weight": [0, 1], "density": [0.1, 0.5]})
    assert not next(a for a in anchors(whole) if a.name == "expert maths").outside_space
    expert = next(a for a in anchors(half) if a.name == "expert maths")
    assert expert.outside_space
    assert expert.recipe.method == "task_arithmetic"


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_on_the_simplex_the_average_and_each_expert_are_points_and_the_base_is_none(method: str) -> None:
    space = MergeSpace(EXPERTS, method=method, simplex=True, base_model="base")
    outside = {anchor.name for anchor in anchors(space) if anchor.outside_space}
    assert outside == {BASE, TASK_ARITHMETIC} | ({UNIFORM} if method == "ties" else set())
    by_name = {anchor.name: anchor for anchor in anchors(space)}
    assert set(by_name[TASK_ARITHMETIC].recipe.params.values()) >= {0.3}
    assert by_name["expert maths"].recipe.params["weight[maths]"] == 1.0


def test_metric_weighted_average_follows_the_scores() -> None:
    space = MergeSpace(EXPERTS, method="task_arithmetic")
    anchor = metric_weighted(space, {"maths": 0.6, "french": 0.2, "code": 0.2})
    assert anchor is not None
    assert anchor.recipe.params["weight[maths]"] == pytest.approx(0.6)
    assert metric_weighted(space, {"maths": 0.0, "french": 0.0, "code": -1.0}) is None


def test_a_score_below_zero_counts_nothing_and_the_weights_stay_shares() -> None:
    """The expert of a task with negative scores would be subtracted from the average, and the others overweighted."""
    space = MergeSpace(EXPERTS, method="task_arithmetic", parameters={"weight": [-1, 1]})
    anchor = metric_weighted(space, {"maths": 0.6, "french": 0.2, "code": -0.4})
    assert anchor is not None
    weights = [anchor.recipe.params[f"weight[{name}]"] for name in EXPERTS]
    assert weights == pytest.approx([0.75, 0.25, 0.0]) and sum(weights) == pytest.approx(1.0)
    assert anchor.params == {f"weight[{name}]": weight for name, weight in zip(EXPERTS, weights, strict=True)}


def test_the_ends_of_searched_experts_are_the_least_and_the_most_in_whatever_order_they_are_written() -> None:
    space = MergeSpace(
        ["mixture"], method="merge_experts", base_model="base", parameters={"keep": {"choices": [6, 2, 4]}}
    )
    kept = {anchor.name: anchor.recipe.params.get("keep") for anchor in anchors(space)}
    assert kept == {"base": None, "fewest experts": 2, "most experts": 6}
