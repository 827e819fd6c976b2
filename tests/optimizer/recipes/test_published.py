"""The merges of a comparison: every method at its published coefficients, over all experts and random subsets."""

from __future__ import annotations

import pytest

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.published import comparison_space, of_subsets, published
from mergefront.optimizer.recipes.space import MergeSpace

BUILT_IN = [name for name, method in METHODS.items() if method.source != "user-defined"]


def space(*models: str, seed: int = 0) -> MergeSpace:
    return comparison_space(MergeSpace(models, method="ties", base_model="base", seed=seed))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_method_is_tried_or_the_reason_is_said(count: int) -> None:
    merges, left_out = published(space(*"abcde"[:count]), BUILT_IN)
    tried = {one.recipe.method for one in merges}
    assert tried | set(left_out) | {"linear"} == set(BUILT_IN) and not tried & set(left_out)
    assert all(name in reason for name, reason in left_out.items())
    assert len({one.name for one in merges}) == len(merges)


def test_task_arithmetic_is_tried_at_a_few_scales_and_ties_as_its_paper_does() -> None:
    merges = {one.label: one.recipe.params for one in published(space("a", "b"), ["task_arithmetic", "ties"])[0]}
    assert merges["task arithmetic 0.5"] == {"weight[a]": 0.5, "weight[b]": 0.5}
    assert merges["task arithmetic 1"] == {"weight[a]": 1.0, "weight[b]": 1.0}
    assert merges["ties"]["density[a]"] == 0.2 and merges["ties"]["weight[b]"] == 1.0


def test_subsets_depend_on_the_seed_alone_and_fewer_are_the_first_of_more() -> None:
    models = "abcdefgh"
    few, more = (of_subsets(space(*models, seed=3), ["ties"], count) for count in (5, 20))
    assert [one.name for one in more][: len(few)] == [one.name for one in few]
    assert len({one.subset for one in more}) == 20 and len(more) == 3 * 20
    assert {one.label for one in more} == {"uniform average", "task arithmetic 0.3", "ties"}
    assert all(tuple(one.recipe.models) == one.subset for one in more)
    other = of_subsets(space(*models, seed=4), ["ties"], 20)
    assert {one.subset for one in other} != {one.subset for one in more}


def test_all_subsets_are_taken_where_there_are_no_more() -> None:
    subsets = {one.subset for one in of_subsets(space("a", "b", "c"), [], 20)}
    assert subsets == {("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")}
    with pytest.raises(UserError, match="at least three experts"):
        of_subsets(space("a", "b"), [], 20)


def test_a_method_of_two_models_merges_the_pairs_among_the_subsets() -> None:
    made = [one for one in of_subsets(space("a", "b", "c"), ["slerp"], 4) if one.label == "slerp"]
    assert sorted(len(one.recipe.models) for one in made) == [2, 2, 2]
