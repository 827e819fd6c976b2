"""What is read from a PEFT LoRA folder, and what is refused because scaled LoRAs could not say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mergefront.adapters.gguf.peft_lora import read_peft_lora
from mergefront.adapters.gguf.tensor_names import Heads, gguf_name, reorder_rotary_rows
from mergefront.optimizer.errors import UserError

MODULE = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}


def write(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    if tensors is None:
        prefix = f"base_model.model.{MODULE}"
        tensors = {
            f"{prefix}.lora_A.weight": np.arange(8, dtype=np.float32).reshape(2, 4),
            f"{prefix}.lora_B.weight": np.ones((4, 2), dtype=np.float32),
        }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_scales_follow_alpha_rank_and_rank_stabilisation(tmp_path: Path):
    assert read_peft_lora(write(tmp_path / "a")).modules[MODULE].scale == pytest.approx(3.0)
    stabilised = read_peft_lora(write(tmp_path / "b", use_rslora=True)).modules[MODULE]
    assert stabilised.scale == pytest.approx(6 / np.sqrt(2))
    patterned = read_peft_lora(write(tmp_path / "c", alpha_pattern={"k_proj": 1, "q_proj": 10})).modules[MODULE]
    assert patterned.scale == pytest.approx(5.0)


def test_bfloat16_is_read_exactly(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    folder = write(tmp_path / "a")
    a = torch.randn(2, 4).to(torch.bfloat16)
    tensors = {f"base_model.model.{MODULE}.lora_A.weight": a}
    tensors[f"base_model.model.{MODULE}.lora_B.weight"] = torch.ones(4, 2, dtype=torch.bfloat16)
    save_torch(tensors, folder / "adapter_model.safetensors")
    assert (read_peft_lora(folder).modules[MODULE].a == a.float().numpy()).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"peft_type": "IA3"}, "LORA"),
        ({"r": 3}, "rank 2"),
        ({"r": 0}, "at least 1"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path, config: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read_peft_lora(write(tmp_path / "a", **config))


def test_broken_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="adapter_config"):
        read_peft_lora(tmp_path)
    half = {f"base_model.model.{MODULE}.lora_A.weight": np.ones((2, 4), dtype=np.float32)}
    with pytest.raises(UserError, match="both halves"):
        read_peft_lora(write(tmp_path / "a", half))
    nan = {**half, f"base_model.model.{MODULE}.lora_B.weight": np.full((4, 2), np.nan, dtype=np.float32)}
    with pytest.raises(UserError, match="NaN"):
        read_peft_lora(write(tmp_path / "b", nan))
    folder = write(tmp_path / "c")
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="cannot be read"):
        read_peft_lora(folder)


@given(st.integers(1, 4), st.integers(1, 5))
def test_reordered_rows_pair_the_two_halves_of_each_head(heads: int, half: int):
    """Row (head, half h, place p) of Hugging Face goes to (head, place p, half h)."""
    rows = heads * 2 * half
    reordered = reorder_rotary_rows(np.arange(rows, dtype=np.float32)[:, None], heads)[:, 0]
    expected = [head * 2 * half + h * half + p for head in range(heads) for p in range(half) for h in range(2)]
    assert reordered.tolist() == expected


def test_names_of_other_models_are_refused():
    assert gguf_name("model.layers.12.mlp.down_proj") == "blk.12.ffn_down"
    with pytest.raises(UserError, match="wte"):
        gguf_name("transformer.wte")
    with pytest.raises(UserError, match="gpt2"):
        Heads.of({"model_type": "gpt2"})
