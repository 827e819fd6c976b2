"""Recipes that a study is given: points of its space where they are, shown by the nearest point where not."""

from __future__ import annotations

import optuna
import pytest

import mergefront as mf
from mergefront.optimizer.search.attributes import WARM_START_RECIPES
from mergefront.optimizer.search.warm_start_recipes import params_in, warm_start_recipes

MODELS = ["a", "b"]
PLAIN = mf.MergeSpace(MODELS, method="task_arithmetic", parameters={"weight": [0.0, 2.0]})
SPACE = mf.MergeSpace(
    MODELS,
    method=["task_arithmetic", "ties"],
    parameters={"weight": [0.0, 1.0], "density": {"low": 0.2, "high": 1.0, "step": 0.2}},
    granularity={"blocks": 2},
    layers=4,
)


def stored(*recipes: mf.Recipe) -> optuna.Study:
    study = optuna.create_study()
    written = [{"name": f"recipe {number}", "recipe": recipe.to_json()} for number, recipe in enumerate(recipes)]
    study.set_user_attr(WARM_START_RECIPES, written)
    return study


def test_a_recipe_for_the_whole_model_is_a_point_of_a_space_of_blocks_and_methods() -> None:
    """A surrogate learns from it, and it counts as evaluated."""
    whole = PLAIN.make("ties", {"weight[a]": 0.25, "weight[b]": 0.75, "density[a]": 0.4, "density[b]": 0.6})
    (found,) = warm_start_recipes(stored(whole), SPACE)
    assert not found.outside_space and found.params["method"] == "ties"
    assert {name: value for name, value in found.params.items() if "[a" in name} == {
        name: (0.25 if name.startswith("weight") else pytest.approx(0.4)) for name in SPACE.searched if "[a" in name
    }
    assert found.recipe == SPACE.recipe(found.params), "it is found again by the recipe that the space makes"


@pytest.mark.parametrize("weight", [1.5, -0.5])
def test_a_recipe_beyond_the_ranges_stays_what_it_is_and_is_shown_by_the_nearest_point(weight: float) -> None:
    beyond = PLAIN.make("task_arithmetic", {"weight[a]": weight, "weight[b]": 0.5})
    assert params_in(SPACE, beyond) is None
    (found,) = warm_start_recipes(stored(beyond), SPACE)
    assert found.outside_space and found.recipe == beyond and found.params["method"] == "task_arithmetic"
    shown = {value for name, value in found.params.items() if name.startswith("weight[a")}
    assert shown == {min(max(weight, 0.0), 1.0)}


def test_a_recipe_of_a_method_that_is_not_searched_is_no_point() -> None:
    linear = PLAIN.make("linear", {"weight[a]": 0.5, "weight[b]": 0.5})
    assert params_in(SPACE, linear) is None
    assert warm_start_recipes(stored(linear), SPACE)[0].outside_space
