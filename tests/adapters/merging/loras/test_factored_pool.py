"""A pool of LoRAs costs what its factors cost, and every method merges it as it merges the models they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.task_vectors.c_kernel import load_kernel
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens": (400, 48),
    "lm_head": (400, 48),
    f"{LAYER}mlp.up_proj": (200, 48),
    f"{LAYER}mlp.down_proj": (512, 300),  # more entries than a mask has levels
    f"{LAYER}self_attn.q_proj": (48, 48),
}
RANKS = {"a": (4, 0, 8, 16, 5), "b": (0, 0, 3, 7, 0), "c": (0, 2, 64, 2, 1)}
VALUES = {"a": 0.35, "b": 0.8, "c": 0.5}
WEIGHTS = {"a": 0.7, "b": -0.4, "c": 1.3}


def base(shapes: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def lora(folder: Path, shapes: dict[str, tuple[int, int]], ranks: tuple[int, ...], seed: int) -> Path:
    """A PEFT folder with a rank for each module, 0 for none."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors, adapted = {}, {name: rank for name, rank in zip(shapes, ranks, strict=True) if rank}
    for name, rank in adapted.items():
        (rows, columns), is_embedding = shapes[name], name.endswith("embed_tokens")
        a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
        b[3] = 0.0  # entries of equal magnitude
        kind, end = ("lora_embedding", "") if is_embedding else ("lora", ".weight")
        tensors[f"base_model.model.{name}.{kind}_A{end}"] = b.T.contiguous() if is_embedding else a
        tensors[f"base_model.model.{name}.{kind}_B{end}"] = a.T.contiguous() if is_embedding else b
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"r": next(iter(adapted.values())), "rank_pattern": adapted, "lora_alpha": 6, "use_rslora": seed == 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pool")
    return {name: lora(folder / name, SHAPES, ranks, seed) for seed, (name, ranks) in enumerate(RANKS.items(), 1)}


def recipe(method: str, rescale: str | None) -> Recipe:
    row = METHODS[method]
    models = list(RANKS)[: row.max_models]
    params: dict[str, float | str] = {}
    for parameter in row.parameters:
        low, high = parameter.search
        for model in models if parameter.scope == "model" else [None]:
            name = parameter.name if model is None else f"{parameter.name}[{model}]"
            if parameter.name == "weight":
                params[name] = WEIGHTS[str(model)]
            elif parameter.name == "rescale" and rescale is not None:
                params[name] = rescale
            elif not parameter.choices and parameter.name not in ("rank", "max_iter", "steps"):
                params[name] = low + (high - low) * (VALUES[model] if model is not None else 0.4)
    return Recipe(method, {model: model for model in models}, params, "base", seed=3)


@pytest.mark.cases(10)
@pytest.mark.parametrize("method", list(METHODS))
def test_the_kernel_multiplies_factors_as_torch_does(pool: dict[str, Path], method: str) -> None:
    if load_kernel() is None:
        pytest.skip("installed without a C compiler")
    for rescale in (None, "l1") if METHODS[method].parameter("rescale") is not None else (None,):
        made = recipe(method, rescale)
        loras = {name: pool[name] for name in made.models}
        fused, plain = (dict(MergeEngine(base(SHAPES), loras, compile=how).iterate(made)) for how in (True, False))
        for name, tensor in plain.items():
            assert torch.equal(fused[name], tensor), (name, rescale)


@pytest.mark.parametrize("resident", [True, False])
def test_a_pool_takes_the_memory_of_its_factors(tmp_path: Path, resident: bool) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process its own memory")
    shapes = {f"model.layers.{layer}.mlp.up_proj": (1024, 1024) for layer in range(2)}
    loras = {f"l{at}": lora(tmp_path / f"l{at}", shapes, (4, 4), at) for at in range(24)}
    engine = MergeEngine(base(shapes), loras, resident=resident)
    live = base(shapes)
    params = {f"{name}[{model}]": 0.3 for name in ("weight", "density") for model in loras}
    made = {method: Recipe(method, dict.fromkeys(loras, "x"), params, "base") for method in ("ties", "dare_ties")}
    before = own_memory()
    for one in made.values():
        engine.merge_into(one, live)
    assert own_memory() - before < 50_000_000  # whole task vectors would be 200 MB
    assert sum(engine.placement.experts.values()) == 24 * 2 * 4 * 2048 * 4


def own_memory() -> int:
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
