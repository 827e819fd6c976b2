"""LoRAs merged as LoRAs: cat is exact, svd is the best of its rank, factor is Evo-Merging's, PEFT loads the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import TINY_MODELS, move

from mergefront.adapters.checkpoints.header import Checkpoint, read_header
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.merging.loras.pool import keep_largest, merge_lora_recipe, merge_loras, write_lora
from mergefront.adapters.merging.output.directory import write_merge
from mergefront.adapters.merging.output.plan import plan_recipe
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.recipe import Recipe

BASE = Path(__file__).parents[3] / "fixtures" / "goldens" / "models" / "base"
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def lora(path: Path, rank: int, alpha: float, modules: dict[str, tuple[int, int]], seed: int) -> Path:
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (rows, columns) in modules.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha, "target_modules": [Q, K]}))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Path]:
    return {
        "a": lora(tmp_path / "a", 2, 8, {f"{Q}": (32, 32), f"{K}": (16, 32)}, 0),
        "b": lora(tmp_path / "b", 3, 3, {f"{Q}": (32, 32)}, 1),
    }


def delta(path: Path, name: str) -> torch.Tensor:
    made = LoraTaskVector(Checkpoint(path)).delta(f"{name}.weight")
    assert made is not None
    return made


def test_cat_is_the_weighted_sum_and_reads_back(pool: dict[str, Path], tmp_path: Path) -> None:
    out = write_lora(merge_loras(pool, {"a": 0.3, "b": -0.8}), tmp_path / "out", pool["a"])
    assert torch.allclose(delta(out, Q), 0.3 * delta(pool["a"], Q) - 0.8 * delta(pool["b"], Q), atol=1e-5)
    assert torch.allclose(delta(out, K), 0.3 * delta(pool["a"], K), atol=1e-5)


def test_svd_is_exact_at_full_rank_and_best_below(pool: dict[str, Path]) -> None:
    wanted = 0.3 * delta(pool["a"], Q) + 0.8 * delta(pool["b"], Q)
    for rank in (5, 2):
        made = merge_loras(pool, {"a": 0.3, "b": 0.8}, operator="svd", rank=rank)[f"{Q}.weight"]
        error = float((made.b @ made.a - wanted).norm())
        left_out = float(torch.linalg.svdvals(wanted)[rank:].norm())
        assert made.a.shape[0] == rank and error == pytest.approx(left_out, abs=1e-3)


def test_factor_sums_the_factors_with_padding(pool: dict[str, Path]) -> None:
    made = merge_loras(pool, {"a": 0.5, "b": 0.25}, operator="factor", densities={"b": 0.5})[f"{Q}.weight"]
    first, second = (load_file(path / "adapter_model.safetensors") for path in pool.values())
    key = f"base_model.model.{Q}.lora_A.weight"
    expected = 0.25 * keep_largest(second[key], 0.5)
    expected[:2] += 0.5 * first[key]
    assert torch.allclose(made.a, expected)
    assert int((keep_largest(second[key], 0.5) != 0).sum()) == second[key].numel() // 2


def test_modules_are_switched_off_by_a_weight_of_zero(pool: dict[str, Path], tmp_path: Path) -> None:
    made = merge_loras(pool, lambda name, target: 0.0 if "k_proj" in target else 1.0)
    assert set(made) == {f"{Q}.weight"}
    with pytest.raises(UserError, match="switched off"):
        write_lora(merge_loras(pool, {"a": 0, "b": 0}), tmp_path / "none", pool["a"])


def test_peft_loads_the_result(pool: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    out = write_lora(merge_loras(pool, {"a": 0.3, "b": 0.8}), tmp_path / "out", pool["a"])
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = peft.PeftModel.from_pretrained(model, out).merge_and_unload().state_dict()
    for name in (Q, K):
        assert torch.allclose(after[f"{name}.weight"] - before[f"{name}.weight"], delta(out, name), atol=1e-5)


def test_a_sum_takes_the_coefficients_of_the_tensors_as_the_base_stores_them(tmp_path: Path) -> None:
    """A LoRA has the names of the live model; Llava's checkpoint has others, by which blocks are counted."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    tiny = TINY_MODELS["llava"]
    tiny.make().save_pretrained(tmp_path / "base")
    folders = {name: tmp_path / name for name in ("a", "b")}
    for seed, folder in enumerate(folders.values()):
        adapted = peft.LoraConfig(r=2 + seed, target_modules=r".*language_model.*(q_proj|up_proj)")
        model = peft.get_peft_model(tiny.make(), adapted)
        move(model, seed)
        model.save_pretrained(folder)
    weights: dict[str, float | bool] = {"weight[a]": 0.5, "weight[b]": 0.7, "weight[b, block 1]": -0.3}
    recipe = Recipe("task_arithmetic", {"a": "a", "b": "b"}, weights, "base", Grouping(3, (0, 1)))
    (tmp_path / "whole").mkdir()
    write_merge(plan_recipe(recipe, tmp_path / "base", folders), tmp_path / "whole")
    write_lora(merge_lora_recipe(recipe, folders, read_header(tmp_path / "base")), tmp_path / "lora", folders["a"])
    load = getattr(transformers, tiny.auto).from_pretrained
    whole, base = load(tmp_path / "whole").state_dict(), load(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload().state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6)
