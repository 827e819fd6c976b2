"""The surrogate believes these numbers: where they are not what a merge does, the search is misled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.merge_rule import MergeRule
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.mmmo.task_vector_projections import projections

ENTRIES = 40_000


@pytest.mark.parametrize("method", ["ties", "dare_ties", "dare_linear", "task_arithmetic"])
def test_they_are_what_the_engine_does_with_random_task_vectors(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    experts = {name: {"w": torch.randn(ENTRIES, generator=generator)} for name in ("a", "b", "c")}
    base = {"w": torch.zeros(ENTRIES)}
    sparse = method != "task_arithmetic"
    parameters = {"weight": [0, 1], "density": [0.1, 1]} if sparse else {"weight": [0, 1]}
    space = MergeSpace(list(experts), method=method, base_model="base", parameters=parameters)
    engine = MergeEngine(base, experts, compile=False)
    merged = {"w": torch.zeros(ENTRIES)}
    for weights, densities in (
        ([1.0, 0.5, 0.2], [0.9, 0.4, 1.0]),
        ([0.3, 0.3, 0.9], [0.2, 0.8, 0.3]),
        ([0.0, 1.0, 0.6], [1.0, 0.5, 0.5]),
    ):
        params = {f"weight[{name}]": w for name, w in zip(experts, weights, strict=True)}
        if sparse:
            params |= {f"density[{name}]": d for name, d in zip(experts, densities, strict=True)}
        engine.merge_into(space.recipe(params), merged)
        done = [float(merged["w"] @ expert["w"] / (expert["w"] @ expert["w"])) for expert in experts.values()]
        scaled = np.array([weights])
        if space.merge_rule.proportions:
            scaled /= scaled.max()
        foretold = projections(space.merge_rule, scaled, np.array([densities]))[0]
        np.testing.assert_allclose(foretold, done, atol=0.06)


def test_an_expert_without_weight_is_not_followed_and_no_weight_at_all_is_the_base() -> None:
    rule = MergeSpace(["a", "b"], method="ties", base_model="base", parameters={"weight": [0, 1]}).merge_rule
    found = projections(rule, np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.5, 1.0], [1.0, 1.0]]))
    assert abs(found[0, 0]) < 0.1 and found[0, 1] > 0.9
    np.testing.assert_allclose(found[1], 0.0, atol=1e-12)


def test_an_average_of_whole_task_vectors_follows_each_by_its_share() -> None:
    found = projections(
        MergeRule(proportions=True, additive=True), np.array([[1.0, 1.0], [1.0, 0.25]]), np.ones((2, 2))
    )
    np.testing.assert_allclose(found, [[0.5, 0.5], [0.8, 0.2]], atol=0.02)


@pytest.mark.parametrize("experts", [1, 6, 200])
def test_a_point_among_many_has_the_projections_that_it_has_alone(experts: int) -> None:
    """Many points are computed some at a time: none is left out, and none has another's."""
    rule = MergeRule(proportions=True, additive=True, sparsifier="magnitude", signs=True)
    weights, densities = np.random.default_rng(0).random((2, 50, experts))
    alone = [projections(rule, weights[i : i + 1], densities[i : i + 1])[0] for i in range(len(weights))]
    np.testing.assert_allclose(projections(rule, weights, densities), alone, rtol=1e-12, atol=1e-14)
