"""A space proposes valid recipes only, reads its own back, and says all that is wrong at once."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectors import recipe_at, vector_of

import mergefront as mf
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.recipes import merge_method as own
from mergefront.optimizer.recipes.merge_method import merge_method
from mergefront.optimizer.recipes.range import Range
from mergefront.optimizer.recipes.space import METHOD, MergeSpace

EXPERTS = ["maths", "french"]


def test_names_read_well_in_a_dashboard() -> None:
    space = MergeSpace(EXPERTS, method="dare_ties", parameters={"weight": [0, 1], "density": [0.1, 1]})
    assert list(space.distributions()) == ["weight[maths]", "weight[french]", "density[maths]", "density[french]"]


def test_density_is_there_only_where_the_method_has_one() -> None:
    space = MergeSpace(EXPERTS, method=["linear", "ties"], parameters={"weight": [0, 1], "density": [0.1, 1]})
    params = {"weight[maths]": 0.5, "weight[french]": 0.5, "density[maths]": 0.2, "density[french]": 0.3}
    linear, ties = (space.recipe({METHOD: method, **params}) for method in ("linear", "ties"))
    assert "density[maths]" not in linear.params
    assert ties.params["density[maths]"] == 0.2
    assert linear == space.recipe({METHOD: "linear", **params, "density[maths]": 0.9})


@given(st.data())
def test_vector_params_and_recipe_are_one_and_the_same_point(data: st.DataObject) -> None:
    space = MergeSpace(
        EXPERTS,
        method=data.draw(st.sampled_from(["ties", "task_arithmetic", "linear"])),
        parameters={"weight": data.draw(st.sampled_from([[0, 1], [-1.5, 1.5], [0.2, 0.7]]))},
        granularity=data.draw(st.sampled_from(["global", {"blocks": 3}, "layers"])),
        layers=4,
    )
    vector = data.draw(st.lists(st.floats(0, 1), min_size=space.dimension, max_size=space.dimension))
    recipe = recipe_at(space, vector)
    params = space.params(recipe)
    assert params is not None
    assert space.recipe(params) == recipe
    assert vector_of(space, params) == pytest.approx(vector, abs=1e-9)


def test_both_ends_of_a_range_are_reached_exactly() -> None:
    space = MergeSpace(EXPERTS, method="task_arithmetic", parameters={"weight": [0.1, 0.7]})
    assert set(recipe_at(space, [0.0, 1.0]).params.values()) == {0.1, 0.7}


@pytest.mark.parametrize("searched", [Range(1e-3, 1.0, log=True), Range(0.0, 1.0, step=0.3), Range(choices=("a", "b"))])
def test_the_middle_of_a_log_range_of_steps_or_choices_is_inside(searched: Range) -> None:
    assert searched.holds(searched.middle)


@given(st.floats(0, 1), st.floats(0, 1))
def test_recipes_with_log_step_and_choices_are_points_of_the_space(share: float, other: float) -> None:
    log, steps = {"low": 0.001, "high": 1, "log": True}, {"low": 0.1, "high": 1, "step": 0.3}
    space = MergeSpace(["maths"], method=["ties", "dare_ties"], parameters={"weight": log, "density": steps})
    recipe = recipe_at(space, [share, 1.0 - share, *[other] * (len(space.searched) - 1)])
    assert space.params(recipe) is not None
    assert 0.001 <= float(recipe.params["weight[maths]"]) <= 1.0
    assert float(recipe.params["density[maths]"]) in {0.1, 0.4, 0.7, 1.0}


def test_space_survives_the_database() -> None:
    space = MergeSpace(
        {"maths": "m", "french": "f"},
        method=["ties", "dare_ties"],
        base_model="b",
        parameters={"weight": (0, 1), "density[maths]": 0.5, "lambda": {"low": 0.1, "high": 2, "log": True}},
        granularity={"blocks": 2},
        layers=6,
        split=["mlp"],
        seed=3,
    )
    again = MergeSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again.distributions() == space.distributions()
    middle = vector_of(space, {name: searched.middle for name, searched in space.searched.items()})
    assert recipe_at(again, middle) == recipe_at(space, middle)


@given(st.lists(st.floats(0, 1), min_size=9, max_size=9), st.sampled_from([1.0, 0.125]))
def test_weights_on_the_simplex_sum_to_one_wherever_they_have_values_of_their_own(
    coordinates: list[float], scale: float
) -> None:
    """A proposal that was settled is settled, and its recipe is one for all multiples of its weights."""
    three = [*EXPERTS, "code"]
    space = MergeSpace(
        three, method="ties", simplex=True, granularity={"blocks": 3}, layers=6, parameters={"lambda": 1}
    )
    params = dict(zip(space.searched, coordinates, strict=True))
    settled = space.settled(params)
    recipe = space.recipe(params)
    assert space.settled(settled) == settled and space.recipe(settled) == recipe and space.params(recipe) == settled
    for block in range(3):
        names = [f"weight[{name}, block {block}]" for name in three]
        given = [params[name] for name in names]
        shares = [value / sum(given) if sum(given) else 1 / 3 for value in given]
        assert [recipe.params[name] for name in names] == pytest.approx(shares, abs=1e-6)
        assert sum(float(recipe.params[name]) for name in names) == pytest.approx(1.0, abs=1e-6)
    if all(sum(coordinates[block::3]) > 0.01 for block in range(3)):
        again = space.recipe({name: scale * value for name, value in params.items()})
        assert [*again.params.values()] == pytest.approx([*recipe.params.values()], abs=1e-6)


def test_a_simplex_survives_the_database_and_other_spaces_say_nothing_of_it() -> None:
    space = MergeSpace(EXPERTS, method=["linear", "tsv_m"], simplex=True)
    again = MergeSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again.simplex and again.searched == space.searched == {
        METHOD: Range(choices=("linear", "tsv_m")),
        "weight[maths]": Range(),
        "weight[french]": Range(),
    }
    assert "simplex" not in MergeSpace(EXPERTS, method="linear").to_json()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "wudi"}, "wudi has no weights"),
        ({"method": "linear", "models": ["maths"]}, "name at least two"),
        ({"method": "linear", "parameters": {"weight": [0.2, 1]}}, "remove 'weight'"),
        ({"method": "linear", "parameters": {"weight[maths]": 0.5}}, "sum to one; remove"),
    ],
)
def test_what_cannot_sum_to_one_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(message)):
        MergeSpace(given.pop("models", EXPERTS), simplex=True, **given)


def test_a_mixture_is_the_experts_shares_in_percent() -> None:
    space = MergeSpace(EXPERTS, method="linear", simplex=True)
    recipe = space.recipe({"weight[maths]": 0.9, "weight[french]": 0.3})
    assert space.no_mixtures is None and space.mixture(recipe) == pytest.approx({"maths": 75.0, "french": 25.0})
    plain = MergeSpace(EXPERTS, method="task_arithmetic", parameters={"weight": [-1, 1]})
    assert "simplex: true" in str(plain.no_mixtures)
    assert plain.mixture(plain.recipe({"weight[maths]": 1.0, "weight[french]": -0.5})) is None
    blocks = MergeSpace(EXPERTS, method="linear", simplex=True, granularity={"blocks": 2}, layers=4)
    assert "granularity: global" in str(blocks.no_mixtures)


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(StudyFileError) as raised:
        MergeSpace(
            EXPERTS,
            method="ties",
            parameters={
                "wieght": [0, 1],
                "density": [0, 1.5],
                "weight[german]": 0.5,
                "weight": [1, 0],
                "lambda[maths]": 1.0,
            },
        )
    message = str(raised.value)
    for words in ("'wieght'", "did you mean 'weight'", "1.5", "'german'", "low end", "whole merge"):
        assert words in message


@pytest.mark.parametrize(
    "given",
    [
        [0],
        [0, 1, 2],
        {"low": 0},
        {"low": 0, "hgih": 1},
        "a b",
        [True, 1],
        None,
        {"choices": []},
        {"low": 0, "high": 1, "log": True},
        [0, float("inf")],
    ],
)
def test_malformed_ranges_are_refused(given: object) -> None:
    with pytest.raises((StudyFileError, UserError)):
        MergeSpace(EXPERTS, method="ties", parameters={"weight": given})


@pytest.mark.parametrize(
    "key", ["weight[block 99]", "weight[a, mlp, block 2]", "weight[a, vision]", "weight[knot 0]", "lambda[mlp]"]
)
def test_a_rule_that_no_coefficient_follows_is_a_mistake(key: str) -> None:
    """It would change nothing, in silence; a stored study, in which it changed nothing, goes on."""
    declared: dict[str, Any] = {"method": "ties", "granularity": {"blocks": 2}, "split": ["mlp"], "layers": 4}
    with pytest.raises(StudyFileError, match=re.escape(key)):
        MergeSpace(["a", "b"], parameters={"weight": [0, 1], key: 0.5}, **declared)
    stored = MergeSpace(["a", "b"], parameters={"weight": [0, 1]}, **declared)
    content = stored.to_json()
    content["parameters"] = {**content["parameters"], key: 0.5}
    assert MergeSpace.from_json(content).searched == stored.searched


def test_nothing_to_search_is_a_mistake() -> None:
    with pytest.raises(StudyFileError, match="nothing is searched"):
        MergeSpace(EXPERTS, method="task_arithmetic", parameters={"weight": 0.5})


def test_blocks_need_the_number_of_layers() -> None:
    with pytest.raises(StudyFileError, match="number of layers"):
        MergeSpace(EXPERTS, granularity={"blocks": 4})
    with pytest.raises(StudyFileError, match="3 layers"):
        MergeSpace(EXPERTS, granularity={"blocks": 4}, layers=3)


@pytest.mark.parametrize("methods", [["tsv_m", "dare_ties"], ["dare_ties", "tsv_m"]])
def test_what_one_method_can_do_without_is_searched_where_another_needs_it(methods: list[str]) -> None:
    """The first method's default would stand for both, and no recipe of the second could be made."""
    space = MergeSpace(EXPERTS, method=methods)
    assert {f"weight[{name}]" for name in space.models} <= space.searched.keys()
    middle = {name: searched.middle for name, searched in space.searched.items()}
    for method in methods:
        assert space.recipe({**middle, "method": method}).method == method


@pytest.mark.parametrize(
    ("methods", "given", "said"),
    [
        (
            ["ram", "della"],
            {"epsilon": [0, 0.3]},
            ["one number for the whole merge in ram and one per expert in della"],
        ),
        (["della", "ram"], {"epsilon": 0.1}, ["one number for the whole merge in ram and one per expert in della"]),
        (["pushing", "pulling"], {"pull": [0, 3]}, ["in [0, 1] in pulling"]),
        (["pushing", "pulling"], {"weight": [0, 1]}, ["unlike ranges: [0, 4] in pushing, [0, 1] in pulling"]),
        (["pulling", "pushing"], {"pull": [0, 0.5]}, []),
        (["ram", "della"], {"weight": [0, 1]}, []),  # every method has its own default
        (["della", "della_linear"], {"epsilon": [0, 0.3]}, []),
    ],
)
def test_a_coefficient_that_methods_take_for_different_things_is_said(
    methods: list[str], given: dict[str, Any], said: list[str]
) -> None:
    """Such as epsilon: a bound below which nothing changed for ram, a spread of dropping chances for della."""

    @merge_method("pulling")
    def pulling(tensors: Any, base: Any, *, weight: tuple[float, ...], pull: Annotated[float, own.Range(0, 1)]) -> Any:
        return base

    @merge_method("pushing")
    def pushing(tensors: Any, base: Any, *, weight: tuple[float, ...], pull: Annotated[float, own.Range(0, 4)]) -> Any:
        return base

    found = MergeSpace(["a", "b"], method=methods, parameters=given).unlike()
    assert len(found) == len(said) and all(part in line for part, line in zip(said, found, strict=True))
    if said:
        with pytest.raises(UserError, match="space: "):
            mf.search(
                space=MergeSpace(["a", "b"], method=methods, parameters=given),
                evaluate=lambda recipe: {"score": 0.0},
                objectives=["score"],
                name="unlike",
                storage="sqlite:////nowhere/unlike.db",
            )


@pytest.mark.parametrize("granularity", [{"starts": None}, {"starts": 5}, {"blocks": None}, {}])
def test_a_granularity_that_was_left_unfinished_is_a_sentence(granularity: dict[str, object]) -> None:
    with pytest.raises(StudyFileError, match=r"granularity: .* must be global, layers"):
        MergeSpace(["a", "b"], method="ties", base_model="m", granularity=granularity, layers=4)
