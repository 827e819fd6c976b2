"""LoRA methods in the engine: the same numbers as the LoRA operators, folded into the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.header import Checkpoint
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.loras.pool import Factors, Part, combine, merge_lora_recipe, write_lora
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

LAYER = "model.layers.{}.{}"
SHAPES = {
    "model.embed_tokens.weight": (10, 6),
    **{f"{LAYER.format(i, 'mlp.up_proj')}.weight": (8, 6) for i in range(2)},
    **{f"{LAYER.format(i, 'self_attn.q_proj')}.weight": (6, 6) for i in range(2)},
    **{f"{LAYER.format(i, 'self_attn.q_proj')}.bias": (6,) for i in range(2)},
}
WEIGHTS = {"weight[a]": 0.7, "weight[b]": -0.4}


def base() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def lora(path: Path, ranks: dict[str, int], seed: int, bias: str | None = None, **settings: object) -> Path:
    """A PEFT folder with a rank per module, given as peft gives it: one r, the others as rank_pattern."""
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, rank in ranks.items():
        rows, columns = SHAPES[f"{module}.weight"]
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    if bias is not None:
        tensors[f"base_model.model.{bias}"] = torch.randn(SHAPES[bias], generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    first = next(iter(ranks.values()))
    config = {"r": first, "lora_alpha": 4, "rank_pattern": ranks}
    (path / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Path]:
    """Two LoRAs of different ranks, scalings and target modules; both adapt layer 0's mlp."""
    up, query = LAYER.format(0, "mlp.up_proj"), LAYER.format(1, "self_attn.q_proj")
    return {
        "a": lora(tmp_path / "a", {up: 2, query: 3}, 1, alpha_pattern={query: 9}),
        "b": lora(tmp_path / "b", {up: 4, LAYER.format(1, "mlp.up_proj"): 1}, 2, use_rslora=True, lora_alpha=8),
    }


def recipe(method: str, params: dict[str, float | bool], grouping: Grouping | None = None) -> Recipe:
    return Recipe(method, {"a": "a", "b": "b"}, params, "base", grouping or Grouping())


def merged(pool: dict[str, Path], made: Recipe, **options: bool) -> dict[str, torch.Tensor]:
    return dict(MergeEngine(base(), pool, **options).iterate(made))  # type: ignore[arg-type]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in second.items():
        assert torch.allclose(first[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("resident", [True, False])
def test_lora_cat_is_task_arithmetic_of_the_dense_loras(pool: dict[str, Path], resident: bool) -> None:
    assert_same(
        merged(pool, recipe("lora_cat", WEIGHTS), resident=resident),
        merged(pool, recipe("task_arithmetic", WEIGHTS), resident=resident),
    )


def test_lora_svd_is_lora_cat_at_full_rank_and_closest_below(pool: dict[str, Path]) -> None:
    origin, exact = base(), merged(pool, recipe("lora_cat", WEIGHTS))
    assert_same(merged(pool, recipe("lora_svd", {**WEIGHTS, "rank": 6})), exact)
    cut = merged(pool, recipe("lora_svd", {**WEIGHTS, "rank": 2}))
    for name in origin:
        if origin[name].dim() == 2:
            left_out = torch.linalg.svdvals(exact[name] - origin[name])[2:].norm()
            assert float((cut[name] - exact[name]).norm()) == pytest.approx(float(left_out), abs=1e-4)


def test_a_rank_of_zero_is_the_largest_of_the_modules_loras(pool: dict[str, Path]) -> None:
    made = merged(pool, recipe("lora_svd", WEIGHTS))["model.layers.0.mlp.up_proj.weight"]
    added = made - base()["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(added, rtol=1e-4) == 4


@pytest.mark.parametrize("method", ["lora_cat", "lora_factor"])
def test_one_lora_alone_is_that_lora_and_none_is_the_base(pool: dict[str, Path], method: str) -> None:
    alone = {"weight[a]": 1.0, "weight[b]": 0.0}
    assert_same(merged(pool, recipe(method, alone)), merged(pool, recipe("task_arithmetic", alone)))
    nothing = merged(pool, recipe(method, {"weight[a]": 0.0, "weight[b]": 0.0}))
    assert all(torch.equal(nothing[name], tensor) for name, tensor in base().items())


def test_modules_are_switched_off_and_layers_weighted_apart(pool: dict[str, Path]) -> None:
    grouping = Grouping(2, (0, 1), ("mlp", "self_attn"))
    params: dict[str, float | bool] = {
        "weight[a]": 0.5,
        "weight[b]": 0.5,
        "weight[b, mlp, block 1]": 2.0,
        "active[a, mlp]": False,
    }
    made, origin = merged(pool, recipe("lora_cat", params, grouping)), base()
    dense = {name: merged(pool, recipe("task_arithmetic", {f"weight[{name}]": 1.0, "weight": 0.0})) for name in "ab"}
    delta = {name: {key: tensor - origin[key] for key, tensor in dense[name].items()} for name in "ab"}
    first, second = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert torch.allclose(made[first] - origin[first], 0.5 * delta["b"][first], atol=1e-5)
    assert torch.allclose(made[second] - origin[second], 2.0 * delta["b"][second], atol=1e-5)
    query = "model.layers.1.self_attn.q_proj.weight"
    assert torch.allclose(made[query] - origin[query], 0.5 * delta["a"][query], atol=1e-5)


@pytest.mark.parametrize("method", ["lora_cat", "lora_svd", "lora_factor"])
def test_the_folded_merge_and_the_merged_lora_are_one(pool: dict[str, Path], tmp_path: Path, method: str) -> None:
    made = recipe(method, {**WEIGHTS, "density[a]": 0.5, "active[b]": True})
    out = write_lora(merge_lora_recipe(made, pool), tmp_path / "out", pool["a"])
    one = Recipe("lora_cat", {"out": "out"}, {"weight[out]": 1.0}, "base")
    assert_same(dict(MergeEngine(base(), {"out": out}).iterate(one)), merged(pool, made))


def test_a_bias_that_a_lora_carries_takes_part(tmp_path: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    path = lora(tmp_path / "a", {LAYER.format(0, "mlp.up_proj"): 2}, 1, bias)
    engine = MergeEngine(base(), {"a": path})
    full, half = (
        dict(engine.iterate(Recipe("lora_cat", {"a": "a"}, {"weight[a]": w}, "base")))[bias] for w in (1.0, 0.5)
    )
    assert not torch.equal(full, base()[bias])
    assert torch.allclose(half, (full + base()[bias]) / 2)


def test_a_transposed_lora_is_merged_as_the_base_stores_it(tmp_path: Path) -> None:
    module = LAYER.format(0, "self_attn.q_proj")
    plain = lora(tmp_path / "plain", {module: 2}, 1)
    turned = lora(tmp_path / "turned", {module: 2}, 1, fan_in_fan_out=True)
    name = f"{module}.weight"
    made = {
        key: dict(MergeEngine(base(), {"a": path}).iterate(Recipe("lora_cat", {"a": "a"}, {"weight[a]": 1.0}, "b")))
        for key, path in {"plain": plain, "turned": turned}.items()
    }
    delta = {key: tensors[name] - base()[name] for key, tensors in made.items()}
    assert torch.allclose(delta["plain"], delta["turned"].T, atol=1e-5)


def test_a_whole_checkpoint_under_a_lora_method_is_named_with_the_remedy(pool: dict[str, Path]) -> None:
    engine = MergeEngine(base(), {"a": pool["a"], "b": base()})
    with pytest.raises(UserError, match=r"lora_cat .*'b' is no PEFT LoRA.*task_arithmetic"):
        list(engine.iterate(recipe("lora_cat", WEIGHTS)))


def test_a_damaged_lora_is_named_before_any_merge(tmp_path: Path) -> None:
    path = lora(tmp_path / "a", {LAYER.format(0, "mlp.up_proj"): 2}, 1)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    save_file(
        {f"{name}A.weight": torch.full((2, 6), torch.nan), f"{name}B.weight": torch.ones(8, 2)},
        path / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=r"'a'.*lora_A.*NaN"):
        MergeEngine(base(), {"a": path})


@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    weights=st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3),
    seed=st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=40)
def test_operators_agree_on_what_they_promise(ranks: list[int], weights: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        Part(w, 0.5, Factors(torch.randn(r, 7, generator=generator), torch.randn(6, r, generator=generator)))
        for r, w in zip(ranks, weights, strict=False)
    ]
    wanted = sum(p.weight * p.scaling * (p.factors.b @ p.factors.a) for p in parts)
    cat, svd = combine(parts, "cat", 0), combine(parts, "svd", sum(ranks))
    assert cat.a.shape[0] == sum(ranks) and combine(parts, "factor", 0).a.shape[0] == max(ranks)
    assert torch.allclose(cat.b @ cat.a, wanted, atol=1e-4)
    assert torch.allclose(svd.b @ svd.a, wanted, atol=1e-3)


BLOCKS = Grouping(2, (0, 1), ("mlp",))
SUMS: dict[str, Recipe] = {
    "task arithmetic": recipe("task_arithmetic", {**WEIGHTS, "lambda": 1.3}),
    "normalised": recipe("task_arithmetic", {**WEIGHTS, "normalize": True}),
    "weights that cancel": recipe("task_arithmetic", {"weight[a]": 0.5, "weight[b]": -0.5, "normalize": True}),
    "by block and module": recipe("task_arithmetic", {**WEIGHTS, "weight[a, mlp, block 0]": 1.5}, BLOCKS),
    "average": recipe("linear", {"weight[a]": 1.0, "weight[b]": 2.0}),
    "shares of one": recipe("linear", {"weight[a]": 0.25, "weight[b]": 0.75, "normalize": False}),
    "DARE that drops nothing": recipe("dare_linear", {**WEIGHTS, "density": 1.0}),
    "breadcrumbs that drop nothing": recipe("breadcrumbs", {**WEIGHTS, "gamma": 0.0}),
}


@pytest.mark.parametrize("kind", SUMS)
def test_a_sum_of_loras_is_one_lora(pool: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Ranks, alphas, rsLoRA and target modules of the two differ; the written LoRA adds what the merge adds."""
    out = write_lora(merge_lora_recipe(SUMS[kind], pool), tmp_path / "out", pool["a"])
    alone = Recipe("lora_cat", {"out": "out"}, {"weight[out]": 1.0}, "base")
    assert_same(dict(MergeEngine(base(), {"out": out}).iterate(alone)), merged(pool, SUMS[kind]))


NO_SUMS: dict[str, tuple[Recipe, str]] = {
    "signs": (recipe("ties", WEIGHTS), "ties elects signs"),
    "spheres": (recipe("nuslerp", WEIGHTS), "nuslerp is no sum"),
    "dropped at random": (recipe("dare_linear", {**WEIGHTS, "density": 0.5}), "drops entries"),
    "dropped by size": (recipe("breadcrumbs", WEIGHTS), "drops entries"),
    "a base that is scaled": (recipe("linear", {**WEIGHTS, "normalize": False}), "multiplies the base itself by 0.3"),
    "nothing": (recipe("task_arithmetic", {"weight[a]": 0.0, "weight[b]": 0.0}), "switched off"),
}


@pytest.mark.parametrize("kind", NO_SUMS)
def test_what_is_no_sum_of_loras_is_refused_with_the_reason(pool: dict[str, Path], tmp_path: Path, kind: str) -> None:
    made, reason = NO_SUMS[kind]
    with pytest.raises(UserError, match=reason):
        write_lora(merge_lora_recipe(made, pool), tmp_path / "out", pool["a"])


def test_a_whole_model_is_in_no_lora(pool: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    save_file(base(), tmp_path / "whole" / "model.safetensors")
    with pytest.raises(UserError, match="'b' is a whole model"):
        merge_lora_recipe(SUMS["average"], {**pool, "b": tmp_path / "whole"})


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.lora is None])
def test_a_float32_bias_of_a_lora_on_a_bfloat16_base_is_merged_as_its_saved_checkpoint(
    name: str, tmp_path: Path
) -> None:
    """``compat: mergekit`` merges LoRAs as they are saved on their base, and no method may stumble over two dtypes."""
    method, bias = METHODS[name], "model.layers.0.self_attn.q_proj.bias"
    experts = ["a"] if method.max_models == 1 else ["a", "b"]
    up = {LAYER.format(0, "mlp.up_proj"): 2}
    loras = {expert: lora(tmp_path / expert, up, seed, bias if seed == 1 else None) for seed, expert in enumerate("ba")}
    on_base = {key: tensor.bfloat16() for key, tensor in base().items()}
    params: dict[str, Any] = {}
    for parameter in method.parameters:
        if parameter.default is None:
            names = [f"{parameter.name}[{expert}]" for expert in experts]
            value = 0.6 * parameter.search[1]
            params |= dict.fromkeys(names if parameter.scope == "model" else [parameter.name], value)
    recipe = Recipe(name, {expert: expert for expert in experts}, params, "base" if method.needs_base else None)
    saved = {
        expert: {
            key: LoraTaskVector(Checkpoint(loras[expert])).on(key, tensor).bfloat16() for key, tensor in on_base.items()
        }
        for expert in experts
    }
    merged, wanted = (
        dict(MergeEngine(on_base, pool, compat_mergekit=True, compile=False).iterate(recipe, [bias]))[bias]
        for pool in ({expert: loras[expert] for expert in experts}, saved)
    )
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, wanted)


def test_karcher_takes_experts_of_several_dtypes(tmp_path: Path) -> None:
    experts = {"a": base(), "b": {key: 2 * tensor.bfloat16() for key, tensor in base().items()}}
    engine = MergeEngine(experts["b"], experts, compat_mergekit=True, compile=False)
    recipe = Recipe("karcher", {"a": "a", "b": "b"})
    for key, tensor in engine.iterate(recipe):
        torch.testing.assert_close(tensor.float(), 1.5 * base()[key], atol=0.05, rtol=0.02)
