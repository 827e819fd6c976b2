"""A merge in the live model is the merge of the stored tensors, whatever transformers renames and fuses at load."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY_MODELS, move

from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

KINDS = (
    "bart", "deepseek_v3", "ernie4_5_moe", "gemma3", "glm4_moe", "gpt2", "gpt_neox", "gpt_oss", "granitemoe", "jamba",
    "lfm2_moe", "llama", "llava", "minimax_m2", "mixtral", "modernbert", "olmoe", "phimoe", "qwen2_5_vl", "qwen2_moe",
    "qwen3_5", "qwen3_moe", "qwen3_next", "t5",
)  # fmt: skip
TIES = {"weight[a]": 0.7, "weight[b]": 0.6, "density[a]": 0.5, "density[b]": 0.4, "lambda": 1.1}


def family(kind: str, folder: Path, **settings: Any) -> Any:
    """Base and two experts of one architecture in folders of their own; returns the class that loads them."""
    model = TINY_MODELS[kind].make(**settings)
    for seed, name in enumerate(("base", "a", "b")):
        move(model, seed)
        model.save_pretrained(folder / name)
    return type(model)


def live(kind: Any, folder: Path) -> LocalBackend:
    model = kind.from_pretrained(folder / "base", dtype=torch.float32).requires_grad_(False)
    return LocalBackend(model, folder / "base", {name: folder / name for name in ("a", "b")})


def recipe(method: str, params: dict[str, Any]) -> Recipe:
    return Recipe(method=method, base_model="base", models={"a": "a", "b": "b"}, params=params)


def same(first: torch.nn.Module, second: torch.nn.Module) -> list[str]:
    """Names of the tensors in which two models differ."""
    other = second.state_dict()
    return [name for name, tensor in first.state_dict().items() if not torch.equal(tensor, other[name])]


@pytest.mark.cases(4)
@pytest.mark.parametrize("kind", KINDS)
def test_the_live_merge_is_the_stored_one_and_an_expert_alone_is_that_expert(kind: str, tmp_path: Path) -> None:
    made = family(kind, tmp_path)
    backend = live(made, tmp_path)
    ties = recipe("ties", TIES)
    engine = MergeEngine(tmp_path / "base", {name: tmp_path / name for name in ("a", "b")}, resident=False)
    shutil.copytree(tmp_path / "base", tmp_path / "merged")
    save_file(dict(engine.iterate(ties)), tmp_path / "merged/model.safetensors", metadata={"format": "pt"})
    stored, report = made.from_pretrained(tmp_path / "merged", dtype=torch.float32, output_loading_info=True)
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    with backend.apply(ties) as merged:
        assert not same(merged, stored)
    with backend.apply(recipe("linear", {"weight[a]": 0.0, "weight[b]": 1.0})) as merged:
        assert not same(merged, made.from_pretrained(tmp_path / "b", dtype=torch.float32))


def test_a_coefficient_that_does_not_change_leaves_its_tensors_of_a_fused_one_alone(tmp_path: Path) -> None:
    backend = live(family("qwen3_moe", tmp_path), tmp_path)
    merges = [backend.apply(recipe("ties", TIES)) for _ in range(2)]
    for merge in merges:
        with merge:
            pass
    assert merges[0].report.merged_tensors > 0
    assert merges[1].report.merged_tensors == 0
    assert merges[1].delta_l1 == merges[0].delta_l1


def test_what_the_model_does_not_read_does_not_block(tmp_path: Path) -> None:
    """GPT-2 as it lies on the Hub: no prefix, and a causal mask per layer."""
    made = family("gpt2", tmp_path)
    for name in ("base", "a", "b"):
        file = tmp_path / name / "model.safetensors"
        tensors = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(3)}
        save_file(tensors | masks, file, metadata={"format": "pt"})
    with live(made, tmp_path).apply(recipe("linear", {"weight[a]": 0.0, "weight[b]": 1.0})) as merged:
        assert not same(merged, made.from_pretrained(tmp_path / "b"))


def test_a_base_that_leaves_tensors_of_the_model_random_is_refused(tmp_path: Path) -> None:
    made = family("gpt2", tmp_path)
    tensors = load_file(tmp_path / "base/model.safetensors")
    del tensors["transformer.h.1.ln_1.weight"]
    save_file(tensors, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"h\.1\.ln_1\.weight"):
        live(made, tmp_path)
