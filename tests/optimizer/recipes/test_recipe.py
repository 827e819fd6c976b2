"""A recipe is exact: what is stored, exported or hashed comes back as the same merge."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from vectors import recipe_at

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

MODELS = {"maths": "models/maths", "french": "models/french"}
unit = st.floats(0, 1, allow_subnormal=False)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    granularity = draw(st.sampled_from(["global", "layers", {"blocks": 2}]))
    split = draw(st.sampled_from([(), ("mlp",), ("self_attn", "mlp")]))
    method = draw(st.sampled_from(["ties", "dare_ties", "task_arithmetic"]))
    space = MergeSpace(MODELS, method=method, base_model="models/base", granularity=granularity, split=split, layers=3)
    return recipe_at(space, draw(st.lists(unit, min_size=space.dimension, max_size=space.dimension)))


@given(recipes())
def test_json_round_trip_is_exact(recipe: Recipe) -> None:
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again == recipe
    assert again.digest == recipe.digest


@given(recipes())
def test_mergekit_yaml_round_trip_is_exact(recipe: Recipe) -> None:
    text = yaml.safe_dump(recipe.to_mergekit(), sort_keys=False)
    assert Recipe.from_mergekit(text, seed=recipe.seed) == recipe


@given(unit, unit)
def test_digest_tells_apart_whatever_differs_in_the_last_bit(a: float, b: float) -> None:
    one, other = (Recipe("ties", MODELS, {"weight[maths]": x, "weight[french]": 0.5}, "base") for x in (a, b))
    assert (one.digest == other.digest) == (a == b)


def test_order_of_coefficients_does_not_matter_but_seed_and_method_do() -> None:
    recipe = Recipe("dare_ties", MODELS, {"weight[maths]": 0.1, "weight[french]": 0.2}, "base")
    assert Recipe("dare_ties", MODELS, {"weight[french]": 0.2, "weight[maths]": 0.1}, "base") == recipe
    assert Recipe("dare_ties", MODELS, dict(recipe.params), "base", seed=1) != recipe
    assert Recipe("ties", MODELS, dict(recipe.params), "base") != recipe


def test_recipe_cannot_be_changed() -> None:
    recipe = Recipe("ties", MODELS, {"weight[maths]": 0.1})
    with pytest.raises(TypeError):
        recipe.params["weight[maths]"] = 0.2  # type: ignore[index]
    with pytest.raises(AttributeError):
        recipe.method = "linear"  # type: ignore[misc]


def test_numpy_numbers_hash_like_pythons() -> None:
    import numpy as np

    plain = Recipe("ties", MODELS, {"weight[maths]": 0.25})
    assert Recipe("ties", MODELS, {"weight[maths]": np.float64(0.25)}).digest == plain.digest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "tiez", "models": MODELS, "params": {}}, ["'tiez'", "'ties'"]),
        ({"method": "ties", "models": MODELS, "params": {"wieght[maths]": 1.0}}, ["'wieght'", "'weight'"]),
        ({"method": "ties", "models": MODELS, "params": {"density[maths]": 1.5}}, ["density[maths]", "1.5", "[0, 1]"]),
        ({"method": "ties", "models": MODELS, "params": {"weight[math]": 1.0}}, ["'math'", "maths"]),
        ({"method": "ties", "models": MODELS, "params": {"weight[maths]": float("nan")}}, ["nan", "finite"]),
        ({"method": "slerp", "models": {"one": "one"}, "params": {"t": 0.5}}, ["slerp", "2", "1"]),
        ({"method": "ties", "models": MODELS, "params": {"weight[maths, block 2]": 1.0}}, ["block 2", "0 blocks"]),
    ],
)
def test_wrong_recipes_name_the_thing_the_value_and_the_remedy(arguments: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        Recipe(**arguments)
    for word in words:
        assert word in str(raised.value)


def test_coefficients_resolve_by_block_module_and_default() -> None:
    grouping = Grouping.equal_blocks(2, 4, ("mlp",))
    recipe = Recipe(
        "ties",
        MODELS,
        {
            "weight[maths, block 0]": 0.1,
            "weight[maths, block 1]": 0.2,
            "weight[maths, mlp, block 1]": 0.3,
            "weight[french]": 0.9,
            "density[french]": 0.5,
        },
        "base",
        grouping,
    )
    assert recipe.coefficient("weight", "maths", "model.layers.0.mlp.up_proj.weight") == 0.1
    assert recipe.coefficient("weight", "maths", "model.layers.3.self_attn.q_proj.weight") == 0.2
    assert recipe.coefficient("weight", "maths", "model.layers.3.mlp.up_proj.weight") == 0.3
    assert recipe.coefficient("weight", "maths", "model.embed_tokens.weight") == 0.1
    assert recipe.coefficient("weight", "maths", "model.norm.weight") == 0.2
    assert recipe.coefficient("weight", "french", "lm_head.weight") == 0.9
    assert recipe.coefficient("density", "maths", "lm_head.weight") == 1.0
    assert recipe.coefficient("normalize", None, "lm_head.weight") is True


def test_gradients_interpolate_over_depth_and_start_outside_the_layers() -> None:
    recipe = Recipe.from_mergekit(
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "models": [
                {"model": "m/maths", "parameters": {"weight": [0.0, 0.5, 1.0]}},
                {"model": "m/french", "parameters": {"weight": [{"filter": "mlp", "value": 0.7}, {"value": 0.1}]}},
            ],
        }
    )
    recipe = Recipe(
        recipe.method, recipe.models, recipe.params, recipe.base_model, Grouping(5, (), recipe.grouping.split)
    )
    values = [recipe.coefficient("weight", "maths", f"model.layers.{i}.mlp.up_proj.weight") for i in range(5)]
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert recipe.coefficient("weight", "maths", "lm_head.weight") == 0.0
    assert recipe.coefficient("weight", "french", "model.layers.1.mlp.up_proj.weight") == 0.7
    assert recipe.coefficient("weight", "french", "model.layers.1.self_attn.q_proj.weight") == 0.1


def test_mergekit_reader_names_what_a_recipe_cannot_say() -> None:
    with pytest.raises(UserError, match="merge_methd"):
        Recipe.from_mergekit("merge_methd: ties")
    skipping = {
        "merge_method": "passthrough_" and "ties",
        "slices": [{"sources": [{"model": "a", "layer_range": [2, 4]}]}],
    }
    with pytest.raises(UserError, match="starts at layer 2"):
        Recipe.from_mergekit(skipping)
