"""LoRAs in every method: written as they were scored, as mergekit reads them, with all their digits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.output.directory import merge_to_directory, write_merge
from mergefront.adapters.merging.output.plan import plan_recipe
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe

TARGETS = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
VALUES = {"weight": 0.7, "density": 0.6, "t": 0.3, "metric": 0.5}
ONE_EXPERT = [name for name, method in METHODS.items() if method.max_models == 1]


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def delta(folder: Path, target: str) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{target}.lora_{side}.weight"] for side in "AB")
    return b @ a * 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16, two LoRAs, and the checkpoints that peft makes of them (rounded once)."""
    root = tmp_path_factory.mktemp("loras")
    generator = torch.Generator().manual_seed(0)
    base = {f"{target}.weight": torch.randn(24, 16, generator=generator).bfloat16() for target in TARGETS}
    base["model.norm.weight"] = torch.randn(16, generator=generator).bfloat16()
    (root / "base").mkdir()
    save_file(base, root / "base" / "model.safetensors")
    for name in ("l1", "l2"):
        factors = {}
        for target in TARGETS:
            for side, shape in (("A", (2, 16)), ("B", (24, 2))):
                key = f"base_model.model.{target}.lora_{side}.weight"
                factors[key] = 0.1 * torch.randn(shape, generator=generator)
        (root / name).mkdir()
        save_file(factors, root / name / "adapter_model.safetensors")
        (root / name / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 4}))
        folded = {key: tensor.clone() for key, tensor in base.items()}
        for target in TARGETS:
            folded[f"{target}.weight"] = (base[f"{target}.weight"].float() + delta(root / name, target)).bfloat16()
        (root / f"{name}_folded").mkdir()
        save_file(folded, root / f"{name}_folded" / "model.safetensors")
    return root


def recipe_of(method: str, base: bool) -> Recipe:
    models = {"x": "l1"} if method in ONE_EXPERT else {"x": "l1", "y": "l2"}
    params: dict[str, float] = {}
    for parameter in METHODS[method].parameters:
        if parameter.name in VALUES:
            owners = models if parameter.scope == "model" else [None]
            for number, owner in enumerate(owners):
                value = VALUES[parameter.name] - 0.2 * number
                params[parameter.name if owner is None else f"{parameter.name}[{owner}]"] = value
    return Recipe(method, models, params, "base" if base else None, seed=3)


def kinds() -> Iterator[tuple[str, bool]]:
    """Every method, with and without a base where it can do both."""
    for name, method in METHODS.items():
        if method.source != "user-defined":
            yield name, method.needs_base
        if method.optional_base:
            yield name, True


@pytest.mark.parametrize("compat", [False, True], ids=["exact", "compat"])
@pytest.mark.parametrize(("method", "base"), list(kinds()))
def test_every_method_writes_the_weights_that_were_scored(
    root: Path, tmp_path: Path, method: str, base: bool, compat: bool
) -> None:
    recipe = recipe_of(method, base)
    loras = {name: root / reference for name, reference in recipe.models.items()}
    live = {name: torch.zeros(tensor.shape) for name, tensor in whole(root / "base").items()}
    MergeEngine(root / "base", loras, rounding="stored", compat_mergekit=compat).merge_into(recipe, live)
    write_merge(plan_recipe(recipe, root / "base", loras, compat=compat), tmp_path)
    written = whole(tmp_path)
    assert written.keys() == live.keys() and all(tensor.dtype == torch.bfloat16 for tensor in written.values())
    assert all(torch.equal(written[name].float(), live[name]) for name in live)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear", "slerp", "nuslerp", "karcher", "passthrough"])
def test_compat_mergekit_merges_loras_as_the_checkpoints_that_peft_makes_of_them(
    root: Path, tmp_path: Path, method: str
) -> None:
    made = []
    for names in (("base+l1", "base+l2"), ("l1_folded", "l2_folded")):
        models = [{"model": name, "parameters": {"weight": 0.6}} for name in names[: 2 - (method == "passthrough")]]
        config = {"merge_method": method, "models": models, "compat": "mergekit"}
        if METHODS[method].needs_base:
            config["base_model"] = "base"
        if method in ("slerp", "karcher", "passthrough"):
            config["models"] = [{"model": entry["model"]} for entry in models]
        if method == "slerp":
            config["parameters"] = {"t": 0.3}
        made.append(whole(merge_to_directory(config, tmp_path / names[0], root)))
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[1])


def test_a_lora_keeps_its_digits_until_the_merge_is_written(root: Path, tmp_path: Path) -> None:
    models = [{"model": "base+l1", "parameters": {"weight": 1}}]
    config = {"merge_method": "task_arithmetic", "base_model": "base", "models": models, "out_dtype": "float32"}
    out, base = whole(merge_to_directory(config, tmp_path / "out", root)), whole(root / "base")
    for target in TARGETS:
        expected = base[f"{target}.weight"].float() + delta(root / "l1", target)
        torch.testing.assert_close(out[f"{target}.weight"], expected, rtol=0, atol=1e-6)


def test_slices_of_a_model_with_a_lora_are_slices_of_the_folded_model(root: Path, tmp_path: Path) -> None:
    slices = [{"sources": [{"model": "base+l1", "layer_range": [at, at + 1]}]} for at in (1, 0, 1)]
    config = {"merge_method": "passthrough", "slices": slices, "base_model": "base"}
    made, folded = whole(merge_to_directory(config, tmp_path / "out", root)), whole(root / "l1_folded")
    for at, origin in enumerate((1, 0, 1)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(made[name.format(at)], folded[name.format(origin)])
