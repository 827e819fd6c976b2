"""Corner cases: what every method makes of them, or the words in which it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

DENSE = [name for name, method in METHODS.items() if method.lora is None]
SHAPES = {"model.embed_tokens.weight": (6, 4), "model.layers.0.mlp.up_proj.weight": (5, 4), "norm": (4,), "one": (1,)}


def base(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def expert(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator)).to(dtype)
        for name, tensor in base().items()
    }


def recipe(name: str, models: list[str], **params: float | bool) -> Recipe:
    """The method with weights that sum to 1 (or what it takes instead), on as many of ``models`` as it allows."""
    method = METHODS[name]
    models = models[: method.max_models]
    given: dict[str, float | bool] = {}
    if method.parameter("weight"):
        given["weight"] = 1.0 / len(models)
    given |= {key: 0.3 for key in ("t", "metric") if method.parameter(key)}
    given |= {key: value for key, value in params.items() if method.parameter(key)}
    return Recipe(name, {model: model for model in models}, given, "base" if method.needs_base else None)


def merged(name: str, experts: dict[str, dict[str, torch.Tensor]], **params: float | bool) -> dict[str, torch.Tensor]:
    return dict(MergeEngine(base(), experts).iterate(recipe(name, list(experts), **params)))


@pytest.mark.parametrize("method", DENSE)
def test_experts_that_are_the_base_give_the_base(method: str) -> None:
    made = merged(method, {"a": base(), "b": base()})
    for name, tensor in base().items():
        assert torch.allclose(made[name], tensor, atol=1e-6), name


NOT_AN_AVERAGE = {
    *("tsv_m", "wudi", "nearswap", "model_stock", "widen"),
    *(name for name, method in METHODS.items() if method.of_matrices),
}
"""Methods that add the experts' shares, or go only part of the way, by definition."""


@pytest.mark.parametrize("method", [m for m in DENSE if not METHODS[m].stochastic and m not in NOT_AN_AVERAGE])
def test_duplicate_experts_give_that_expert(method: str) -> None:
    """All weights sum to 1, nothing is dropped: two copies of one expert have no other merge than the expert."""
    made = merged(method, {"a": expert(1), "b": expert(1)}, density=1.0, gamma=0.0)
    for name, tensor in expert(1).items():
        assert torch.allclose(made[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("method", DENSE)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3), (3, 1), ()])
def test_tensors_of_one_entry_row_or_column_are_merged(method: str, shape: tuple[int, ...]) -> None:
    origin, first, second = torch.full(shape, 1.0), torch.full(shape, 1.5), torch.full(shape, 2.0)
    engine = MergeEngine({"w": origin}, {"a": {"w": first}, "b": {"w": second}})
    made = dict(engine.iterate(recipe(method, ["a", "b"])))["w"]
    assert made.shape == shape and torch.isfinite(made).all()


@pytest.mark.parametrize("method", [name for name in DENSE if METHODS[name].parameter("density")])
def test_a_density_of_zero_keeps_nothing(method: str) -> None:
    made = merged(method, {"a": expert(1), "b": expert(2)}, density=0.0)
    assert all(torch.equal(made[name], tensor) for name, tensor in base().items())


@pytest.mark.parametrize("method", [name for name in DENSE if METHODS[name].parameter("normalize")])
def test_weights_of_zero_with_normalize_give_the_base(method: str) -> None:
    made = merged(method, {"a": expert(1), "b": expert(2)}, weight=0.0, normalize=True)
    assert all(torch.allclose(made[name], tensor, atol=1e-6) for name, tensor in base().items())


@pytest.mark.parametrize("method", DENSE)
def test_half_bfloat16_and_float32_mix(method: str) -> None:
    experts = {"a": expert(1, torch.float16), "b": expert(2, torch.float32)}
    live = {name: torch.empty_like(tensor) for name, tensor in base(torch.bfloat16).items()}
    MergeEngine(base(torch.bfloat16), experts).merge_into(recipe(method, ["a", "b"]), live)
    reference = {name: torch.empty(tensor.shape) for name, tensor in live.items()}
    exact = {name: {key: tensor.float() for key, tensor in held.items()} for name, held in experts.items()}
    origin = {name: tensor.float() for name, tensor in base(torch.bfloat16).items()}
    MergeEngine(origin, exact).merge_into(recipe(method, ["a", "b"]), reference)
    for name, tensor in live.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, reference[name].bfloat16()), name


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "karcher", "sce"])
def test_a_tied_head_follows_the_embedding(method: str, tmp_path: Path) -> None:
    """One expert stores its tied head, the other does not; the live model's head is its embedding."""
    stored = expert(1)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    for name, tensors in {"base": base(), "a": stored, "b": expert(2)}.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"tie_word_embeddings": true}')
    live = base()
    live["lm_head.weight"] = live["model.embed_tokens.weight"]
    engine = MergeEngine(tmp_path / "base", {"a": tmp_path / "a", "b": tmp_path / "b"})
    report = engine.merge_into(recipe(method, ["a", "b"]), live)
    plain = merged(method, {"a": expert(1), "b": expert(2)})
    assert report.merged_tensors == len(SHAPES)
    assert torch.equal(live["lm_head.weight"], plain["model.embed_tokens.weight"])
