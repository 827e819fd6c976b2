"""The resident engine: in place, only what changed, and clear about what does not fit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.recipe import Recipe


def layered(seed: int, layers: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.weight" for i in range(layers)), "model.norm.weight"]
    return {name: torch.randn(6, 5, generator=generator) for name in names}


@pytest.fixture
def engine() -> MergeEngine:
    return MergeEngine(layered(0), {"maths": layered(1), "code": layered(2)})


def recipe(**params: float) -> Recipe:
    named = {"weight[maths]": 0.3, "weight[code]": 0.4} | params
    return Recipe("ties", {"maths": "m", "code": "c"}, named, "base", Grouping.equal_blocks(2, 4))


def empty() -> dict[str, torch.Tensor]:
    return {name: torch.empty_like(tensor) for name, tensor in layered(0).items()}


def test_targets_are_written_where_they_are(engine: MergeEngine) -> None:
    live = empty()
    places = {name: tensor.data_ptr() for name, tensor in live.items()}
    report = engine.merge_into(recipe(), live)
    assert report.merged_tensors == 6
    assert {name: tensor.data_ptr() for name, tensor in live.items()} == places
    assert all(torch.equal(live[name], tensor) for name, tensor in engine.iterate(recipe()))


def test_only_layers_whose_coefficients_changed_are_merged_again(engine: MergeEngine) -> None:
    live = empty()
    first = engine.merge_into(recipe(), live)
    assert engine.merge_into(recipe(), live).merged_tensors == 0
    changed = recipe(**{"weight[maths, block 1]": 0.9})
    report = engine.merge_into(changed, live)
    assert report.merged_tensors == 3  # two layers of the second block, and the final norm
    assert report.delta_l1 != first.delta_l1
    assert all(torch.equal(live[name], tensor) for name, tensor in engine.iterate(changed))


def test_a_target_that_somebody_else_changed_is_merged_again(engine: MergeEngine) -> None:
    live = empty()
    engine.merge_into(recipe(), live)
    live["model.norm.weight"].zero_()
    assert engine.merge_into(recipe(), live).merged_tensors == 1
    assert live["model.norm.weight"].abs().sum() > 0


def test_another_model_gets_its_own_merge(engine: MergeEngine) -> None:
    engine.merge_into(recipe(), empty())
    second = empty()
    assert engine.merge_into(recipe(), second).merged_tensors == 6


def test_tied_targets_are_written_once(engine: MergeEngine) -> None:
    live = empty()
    live["lm_head.weight"] = live["model.embed_tokens.weight"]
    assert engine.merge_into(recipe(), live).merged_tensors == 6


def test_live_parameters_of_a_module_and_other_dtypes(engine: MergeEngine) -> None:
    live = {name: torch.nn.Parameter(tensor.to(torch.bfloat16)) for name, tensor in empty().items()}
    engine.merge_into(recipe(), live)
    for name, tensor in engine.iterate(recipe()):
        assert torch.equal(live[name].detach(), tensor.to(torch.bfloat16))


def test_a_target_outside_the_checkpoint_is_named(engine: MergeEngine) -> None:
    with pytest.raises(UserError, match=r"model.norm.wieght.*did you mean 'model.norm.weight'"):
        engine.merge_into(recipe(), {"model.norm.wieght": torch.empty(6, 5)})


def test_merging_into_an_experts_own_memory_is_refused() -> None:
    maths = layered(1)
    engine = MergeEngine(layered(0), {"maths": maths, "code": layered(2)})
    with pytest.raises(UserError, match="copy of the model"):
        engine.merge_into(recipe(), maths)


def test_the_base_may_be_the_live_model_itself() -> None:
    live = layered(0)
    engine = MergeEngine(live, {"maths": layered(1), "code": layered(2)})
    expected = dict(engine.iterate(recipe()))
    engine.merge_into(recipe(), live)
    assert all(torch.equal(live[name], expected[name]) for name in live)


def test_a_base_that_no_memory_is_left_to_copy_is_not_overwritten() -> None:
    """The second candidate would be merged from the first."""
    live = layered(0)
    engine = MergeEngine(live, {"maths": layered(1), "code": layered(2)}, max_memory={"cpu": 0})
    with pytest.raises(UserError, match="copy of the model"):
        engine.merge_into(recipe(), live)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_damaged_checkpoint_is_named_with_its_tensor(tmp_path: Path, value: float) -> None:
    damaged = layered(1)
    damaged["model.layers.2.mlp.weight"][3, 3] = value
    save_file(damaged, tmp_path / "damaged.safetensors")
    with pytest.raises(UserError, match=r"maths.*model\.layers\.2\.mlp\.weight.*NaN"):
        MergeEngine(layered(0), {"maths": tmp_path / "damaged.safetensors"})


def test_an_expert_of_another_shape_is_refused() -> None:
    other = layered(1)
    other["model.norm.weight"] = torch.ones(6, 6)
    with pytest.raises(UserError, match=r"model.norm.weight is \[6, 6\] and not \[6, 5\]"):
        MergeEngine(layered(0), {"maths": other})


def test_a_recipe_with_an_unknown_expert_is_refused(engine: MergeEngine) -> None:
    with pytest.raises(UserError, match="french"):
        engine.merge_into(Recipe("ties", {"french": "f"}, {"weight[french]": 1.0}, "base"), empty())


def test_experts_without_a_base_can_be_averaged() -> None:
    engine = MergeEngine(None, {"maths": layered(1), "code": layered(2)})
    made = dict(engine.iterate(Recipe("linear", {"maths": "m", "code": "c"}, {"weight": 1.0})))
    assert torch.allclose(
        made["model.norm.weight"], (layered(1)["model.norm.weight"] + layered(2)["model.norm.weight"]) / 2
    )
    with pytest.raises(UserError, match="needs a base"):
        list(engine.iterate(recipe()))


def test_mixed_dtypes_are_accumulated_in_float32() -> None:
    base = {"w": torch.full((4,), 256.0, dtype=torch.bfloat16)}
    experts = {"a": {"w": torch.full((4,), 256.5)}, "b": {"w": torch.full((4,), 257.5, dtype=torch.float16)}}
    weights = {"weight[a]": 1.0, "weight[b]": 1.0}
    live = {"w": torch.empty(4)}
    MergeEngine(base, experts).merge_into(Recipe("task_arithmetic", {"a": "a", "b": "b"}, weights, "base"), live)
    assert live["w"].tolist() == [258.0] * 4


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "task_arithmetic"])
def test_an_engine_that_nobody_holds_is_freed_at_once(method: str) -> None:
    """On a GPU the next one would find no room: memory there does not wait for Python's collector of cycles."""
    gc.disable()
    try:
        for compile in (True, False):
            engine = MergeEngine(layered(0), {"maths": layered(1), "code": layered(2)}, compile=compile)
            weights = {"weight[maths]": 0.3, "weight[code]": 0.4}
            engine.merge_into(Recipe(method, {"maths": "m", "code": "c"}, weights, "base"), empty())
            held = weakref.ref(engine._pool)
            del engine
            assert held() is None
    finally:
        gc.enable()
