"""The arithmetic behind servers and ensembles: recipes as scales, weights as votes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.adapters.remote.ensemble.votes import normalised_answer, pooled_choices, pooled_text, weighted_vote
from mergefront.adapters.remote.llama_server.backend import copies_by_density, densities_without_copies
from mergefront.adapters.remote.llama_server.wire import Lora
from mergefront.adapters.remote.scales import densities, lora_scales, single_model
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

NAMES = ("a", "b", "c")
WEIGHTS = st.lists(st.floats(-3, 3), min_size=3, max_size=3)
LOGPROBS = st.lists(st.floats(-50, -0.01), min_size=2, max_size=5)


def recipe(method: str, weights: list[float], **params: float | bool) -> Recipe:
    weighted = {f"weight[{name}]": weight for name, weight in zip(NAMES, weights, strict=True)}
    return Recipe(method, {name: name for name in NAMES}, {**weighted, **params}, "base")


@given(WEIGHTS, st.floats(-2, 2))
def test_task_arithmetic_is_the_weights_times_lambda(weights: list[float], factor: float):
    scales = lora_scales(recipe("task_arithmetic", weights, **{"lambda": factor}))
    assert list(scales.values()) == [factor * weight for weight in weights]


@given(WEIGHTS)
def test_an_average_of_experts_has_scales_that_sum_to_one(weights: list[float]):
    if abs(math.fsum(weights)) < 1e-3:
        return
    assert math.fsum(lora_scales(recipe("linear", weights)).values()) == pytest.approx(1.0)


def test_weights_that_cancel_are_a_failed_candidate():
    with pytest.raises(EvaluationError, match="sum to 0"):
        lora_scales(recipe("linear", [1.0, -1.0, 0.0]))


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_method_that_is_no_sum_is_refused(method: str):
    with pytest.raises(UserError, match="task_arithmetic"):
        lora_scales(recipe(method, [1.0, 0.0, 0.0]))


def test_scales_that_vary_over_depth_and_dropped_entries_are_refused():
    blocks = Recipe(
        "task_arithmetic", {"a": "a"}, {"weight[a, block 0]": 1.0, "weight[a, block 1]": 0.5}, "base",
        Grouping.equal_blocks(2, 4, ()),
    )  # fmt: skip
    with pytest.raises(UserError, match="granularity: global"):
        lora_scales(blocks)
    with pytest.raises(UserError, match="density"):
        lora_scales(recipe("dare_linear", [1.0, 0.0, 0.0], **{"density[a]": 0.5}))


def test_a_copy_of_a_lora_stands_for_the_density_it_was_written_at():
    copied = recipe("lora_cat", [0.5, 1.0, 0.0], **{"density[a]": 0.5})
    assert lora_scales(copied, {"a": {1.0: 0, 0.5: 3}}) == {"a": 0.5, "b": 1.0, "c": 0.0}
    dropped_at_random = recipe("dare_linear", [1.0, 0.0, 0.0], **{"density[a]": 0.5})
    for other, copies in ((copied, {"a": {1.0: 0}, "b": {0.5: 4}}), (dropped_at_random, {"a": {0.5: 3}})):
        with pytest.raises(UserError, match="gguf --density"):
            lora_scales(other, copies)
    listed = [Lora(0, "a.gguf", 0.0), Lora(1, "b.gguf", 0.0), Lora(2, "a@0.5.gguf", 0.0), Lora(3, "b@x.gguf", 0.0)]
    assert copies_by_density(listed, {"a": 0, "b": 1}) == {"a": {1.0: 0, 0.5: 2}, "b": {1.0: 1}}


@pytest.mark.parametrize(
    ("method", "density", "sound"),
    [
        ("lora_cat", {"low": 0.1, "high": 1.0, "step": 0.1}, True),
        ("lora_cat", {"choices": [0.3, 1.0]}, True),
        ("lora_cat", 0.3, True),
        ("lora_cat", [0.5, 1.0], False),  # its ends and its middle are held
        ("lora_cat", {"choices": [0.25, 1.0]}, False),
        ("lora_cat", 0.25, False),
        ("dare_linear", [0.5, 1.0], True),  # refused for its method
    ],
)
def test_densities_that_a_search_would_reach_are_held(method: str, density: Any, sound: bool):
    listed = [Lora(0, "a.gguf", 0.0), *(Lora(n, f"a@{n / 10:g}.gguf", 0.0) for n in range(1, 10))]
    copies = copies_by_density(listed, {"a": 0})
    space = MergeSpace(["a"], method=method, base_model="base", parameters={"weight": [0, 1], "density": density})
    problems = densities_without_copies(space, copies)
    assert (problems == []) is sound and all("density[a]" in problem for problem in problems)


def test_steps_are_found_among_copies_whatever_their_last_digit():
    """Optuna's third step of 0.1 is 0.30000000000000004: such a trial ended the search."""
    third = recipe("lora_cat", [1.0, 0.0, 0.0], **{"density[a]": 0.1 + 2 * 0.1})
    copies = copies_by_density([Lora(0, "a.gguf", 0.0), Lora(1, "a@0.3.gguf", 0.0)], {"a": 0})
    assert lora_scales(third, copies)["a"] == 1.0 and copies["a"][densities(third)["a"]] == 1


def test_every_anchor_of_a_space_of_loras_can_be_served():
    space = MergeSpace(list(NAMES), method="task_arithmetic", parameters={"weight": [-1, 1.5]})
    served = {anchor.name: lora_scales(anchor.recipe) for anchor in anchors(space)}
    assert set(served["base"].values()) == {0.0}
    assert served["uniform average"] == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    assert [single_model(anchor.recipe) for anchor in anchors(space)][:4] == ["", "a", "b", "c"]


@given(st.lists(st.sampled_from(["Paris", " paris.", "Rome", "rome ", ""]), min_size=3, max_size=3), WEIGHTS)
def test_a_vote_is_won_by_an_answer_somebody_gave_with_the_largest_support(answers: list[str], weights: list[float]):
    given_, weighted = dict(zip(NAMES, answers, strict=True)), dict(zip(NAMES, weights, strict=True))
    winner = weighted_vote(given_, weighted)
    if not any(weights):
        assert winner == ""
        return

    def support(text: str) -> float:
        same = [n for n in NAMES if weighted[n] and normalised_answer(given_[n]) == normalised_answer(text)]
        return math.fsum(weighted[name] for name in same)

    assert winner in answers
    assert all(support(winner) >= support(given_[name]) for name in NAMES if weighted[name])


def test_models_that_agree_outvote_a_stronger_one():
    answers = {"a": "Rome", "b": "Paris.", "c": " paris"}
    assert weighted_vote(answers, {"a": 0.5, "b": 0.4, "c": 0.3}) == "Paris."
    assert weighted_vote(answers, {"a": 0.8, "b": 0.4, "c": 0.3}) == "Rome"
    assert weighted_vote(answers, {"a": 0.3, "b": 0.2, "c": -0.1}) == "Rome"


@given(LOGPROBS, st.floats(0.01, 1), st.floats(-30, 30))
def test_pooled_choices_are_probabilities_and_ignore_how_unlikely_a_model_finds_them_all(
    values: list[float], weight: float, shift: float
):
    logprobs = {"a": values, "b": list(reversed(values))}
    pooled = pooled_choices(logprobs, {"a": weight, "b": 0.5})
    assert math.fsum(math.exp(value) for value in pooled) == pytest.approx(1.0)
    shifted = pooled_choices({"a": [v + shift for v in values], "b": logprobs["b"]}, {"a": weight, "b": 0.5})
    assert shifted == pytest.approx(pooled, abs=1e-6)


def test_a_mixture_of_one_model_is_that_model():
    assert pooled_text({"a": -3.0, "b": -9.0}, {"a": 0.7, "b": 0.0}) == pytest.approx(-3.0)
    with pytest.raises(EvaluationError, match="weights of at least 0"):
        pooled_text({"a": -3.0, "b": -9.0}, {"a": 0.7, "b": -0.1})
    with pytest.raises(EvaluationError, match="no model"):
        pooled_text({"a": -3.0}, {"a": 0.0})
