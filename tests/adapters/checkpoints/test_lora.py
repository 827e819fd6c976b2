"""PEFT LoRA folders become the task vectors that peft itself would merge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergefront.adapters.checkpoints.compatibility import compare_headers
from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe

GOLDENS = Path(__file__).parents[2] / "fixtures" / "goldens"
BASE = GOLDENS / "models" / "base"
RECIPE = Recipe("task_arithmetic", {"lora": "lora"}, {"weight[lora]": 1.0}, str(BASE))


def trained_lora(path: Path, **settings: object) -> tuple[Path, dict[str, torch.Tensor]]:
    """A LoRA with random numbers in both factors, and what peft merges it to."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.requires_grad:
            parameter.data.add_(0.01)
    model.save_pretrained(path)
    return path, dict(model.merge_and_unload().state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]},
        {"r": 4, "lora_alpha": 16, "use_rslora": True, "target_modules": ["v_proj"]},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj"],
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 32},
        },
        {"r": 3, "lora_alpha": 6, "target_modules": ["embed_tokens", "q_proj"]},
        {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["plain", "rslora", "patterns", "embedding", "modules_to_save"],
)
def test_folding_matches_peft(tmp_path: Path, settings: dict[str, object]) -> None:
    path, expected = trained_lora(tmp_path / "lora", **settings)
    assert compare_headers(read_header(BASE), read_header(path), "lora") == []
    made = dict(MergeEngine(BASE, {"lora": path}).iterate(RECIPE))
    for name, tensor in made.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    untouched = [name for name in made if torch.equal(made[name], load_file(BASE / "model.safetensors")[name])]
    assert untouched and len(untouched) < len(made)


def write_lora(path: Path, tensors: dict[str, torch.Tensor], config: str = '{"r": 2, "lora_alpha": 4}') -> Path:
    path.mkdir()
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(config)
    return path


KEY = "base_model.model.model.layers.0.self_attn.q_proj"


def test_conv1d_layout_is_transposed(tmp_path: Path) -> None:
    base = {"h.0.c_attn.weight": torch.zeros(3, 5)}
    a, b = torch.randn(2, 3), torch.randn(5, 2)
    config = '{"r": 2, "lora_alpha": 4, "fan_in_fan_out": true}'
    path = write_lora(
        tmp_path / "l", {f"base_model.model.h.0.c_attn.lora_{s}.weight": t for s, t in (("A", a), ("B", b))}, config
    )
    made = dict(MergeEngine(base, {"lora": path}).iterate(RECIPE))
    assert torch.allclose(made["h.0.c_attn.weight"], 2 * (b @ a).T, atol=1e-6)


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        ({f"{KEY}.lora_A.weight": torch.ones(2, 32)}, '{"r": 2}', "only one of lora_A and lora_B"),
        (
            {f"{KEY}.lora_A.weight": torch.ones(2, 32), f"{KEY}.lora_B.weight": torch.ones(32, 3)},
            '{"r": 2}',
            "share a rank",
        ),
        ({f"{KEY}.lora_A.weight": torch.ones(2, 32), f"{KEY}.lora_B.weight": torch.ones(32, 2)}, '{"r": 8}', "rank 2"),
        (
            {f"{KEY}.lora_A.weight": torch.ones(2, 31), f"{KEY}.lora_B.weight": torch.ones(32, 2)},
            '{"r": 2}',
            r"\[32, 31\]",
        ),
        (
            {
                "base_model.model.x.lora_A.weight": torch.ones(2, 3),
                "base_model.model.x.lora_B.weight": torch.ones(3, 2),
            },
            '{"r": 2}',
            "x.weight",
        ),
        ({f"{KEY}.lora_A.weight": torch.ones(2, 32)}, '{"peft_type": "IA3"}', "IA3"),
        ({f"{KEY}.lora_A.weight": torch.ones(2, 32)}, '{"use_dora": true}', "use_dora"),
    ],
)
def test_loras_that_do_not_fit_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: str, reason: str
) -> None:
    path = write_lora(tmp_path / "l", tensors, config)
    with pytest.raises(UserError, match=reason):
        MergeEngine(BASE, {"lora": path})
