"""Methods that mergekit does not have: what their papers promise."""

from __future__ import annotations

import pytest
import torch

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe


def low_rank(seed: int, rows: slice) -> torch.Tensor:
    """A rank-2 task vector that reads from its own stretch of input columns and writes to its own rows."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.zeros(12, 12)
    made[rows, rows] = torch.randn(4, 2, generator=generator) @ torch.randn(2, 4, generator=generator)
    return made


def pool() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]], list[torch.Tensor]]:
    base = {"w": torch.randn(12, 12, generator=torch.Generator().manual_seed(9)), "norm": torch.ones(5)}
    deltas = [low_rank(seed, slice(4 * seed, 4 * seed + 4)) for seed in range(3)]
    experts = {f"e{i}": {"w": base["w"] + delta, "norm": base["norm"] + i} for i, delta in enumerate(deltas)}
    return base, experts, deltas


@pytest.mark.parametrize("method", ["tsv_m", "wudi"])
def test_experts_that_do_not_interfere_are_all_kept_whole(method: str) -> None:
    base, experts, deltas = pool()
    recipe = Recipe(method, {name: name for name in experts}, {}, "base")
    made = dict(MergeEngine(base, experts).iterate(recipe))
    assert torch.allclose(made["w"], base["w"] + sum(deltas), atol=1e-4)
    assert torch.allclose(made["norm"], base["norm"] + 1)


@pytest.mark.parametrize("method", ["tsv_m", "wudi", "widen"])
def test_a_scale_of_zero_is_the_base_and_the_delta_is_linear_in_it(method: str) -> None:
    base, experts, _ = pool()
    engine = MergeEngine(base, experts)
    made = [
        dict(engine.iterate(Recipe(method, {name: name for name in experts}, {"lambda": scale}, "base")))["w"]
        for scale in (0.0, 1.0, 2.0)
    ]
    assert torch.equal(made[0], base["w"])
    assert torch.allclose(made[2] - made[0], 2 * (made[1] - made[0]), atol=1e-5)


def test_wudi_interferes_least_of_all_task_vectors_tried() -> None:
    generator = torch.Generator().manual_seed(3)
    deltas = [torch.randn(6, 6, generator=generator) for _ in range(3)]
    base = {"w": torch.zeros(6, 6)}
    engine = MergeEngine(base, {f"e{i}": {"w": delta} for i, delta in enumerate(deltas)})
    recipe = Recipe("wudi", {f"e{i}": "e" for i in range(3)}, {}, "base")
    found = dict(engine.iterate(recipe))["w"]

    def interference(candidate: torch.Tensor) -> float:
        return sum(float(((candidate - d) @ d.T).square().sum() / d.square().sum()) for d in deltas)

    rivals = [sum(deltas, torch.zeros(6, 6)), sum(deltas, torch.zeros(6, 6)) / 3]
    rivals += [found + 0.05 * torch.randn(6, 6, generator=generator) for _ in range(20)]
    assert all(interference(found) < interference(rival) for rival in rivals)


def test_widen_lets_a_far_moved_column_through_in_full() -> None:
    base = {"w": torch.eye(6)}
    near, far = torch.eye(6), torch.eye(6)
    near[0, 1] += 0.01
    far[:, 2] += 3.0
    recipe = Recipe("widen", {"near": "n", "far": "f"}, {}, "base")
    made = dict(MergeEngine(base, {"near": {"w": near}, "far": {"w": far}}).iterate(recipe))["w"]
    assert torch.allclose(made[:, 2], far[:, 2], atol=1e-5)


def test_better_metrics_weigh_more() -> None:
    experts = {"a": {"w": torch.zeros(2)}, "b": {"w": torch.ones(2)}}
    params = {"metric[a]": 0.25, "metric[b]": 0.75, "penalty": 2.0}
    made = dict(MergeEngine(None, experts).iterate(Recipe("metrics_weighted", {"a": "a", "b": "b"}, params)))["w"]
    assert torch.allclose(made, torch.full((2,), 0.9))


def test_every_kernel_and_preparation_can_be_imported() -> None:
    for method in METHODS.values():
        if method.consensus is None and method.lora is None:
            assert callable(method.load_kernel())
            assert method.load_prepare() is None or callable(method.load_prepare())
