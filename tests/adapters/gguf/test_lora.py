"""What a PEFT LoRA becomes as GGUF, and what is refused because scaled LoRAs could not say it."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.gguf.architectures import Architecture, gguf_name, reorder_rotary_rows
from mergefront.adapters.gguf.file import write_gguf
from mergefront.adapters.gguf.lora import plan_lora
from mergefront.adapters.merging.loras.pool import keep_largest
from mergefront.optimizer.errors import UserError

MODULE = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}


def write(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 2}')
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 3.0), ({"use_rslora": True}, 6 / 2**0.5), ({"alpha_pattern": {"k_proj": 1, "q_proj": 10}}, 5.0)],
)
def test_the_file_means_what_peft_means(tmp_path: Path, base: Path, config: dict[str, Any], scale: float):
    """Scales follow alpha, rank and rank stabilisation; bfloat16 is read exactly."""
    gguf = pytest.importorskip("gguf")
    a, b = torch.randn(2, 4).bfloat16(), torch.randn(4, 2)
    prefix = f"base_model.model.{MODULE}"
    folder = write(tmp_path / "a", {}, **config)
    save_torch({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    read = gguf.GGUFReader(converted(folder, base, tmp_path / "out.gguf"))
    alpha = float(read.fields["adapter.lora.alpha"].contents())
    tensors = {tensor.name: tensor.data for tensor in read.tensors}
    assert alpha / 2 == pytest.approx(scale)
    assert (tensors["blk.0.attn_q.weight.lora_a"] == a.float().numpy()).all()
    assert (tensors["blk.0.attn_q.weight.lora_b"] == reorder_rotary_rows(b.numpy(), 2)).all()


@given(density=st.sampled_from([0.2, 0.25, 0.5, 0.9]))
def test_a_copy_at_a_density_is_what_lora_cat_takes_of_the_lora(density: float) -> None:
    """Another choice of entries would be scored as the recipe that an export makes otherwise."""
    gguf = pytest.importorskip("gguf")
    a = torch.randint(-3, 4, (4, 5)).float()  # with equal magnitudes
    with TemporaryDirectory() as name:
        tensors = {key: a.numpy() if "lora_A" in key else np.ones((4, 4), dtype=np.float32) for key in FACTORS}
        folder = write(Path(name) / "a", tensors, r=4)
        base = {"model_type": "llama", "num_attention_heads": 2}
        out = write_gguf(plan_lora(read_header(folder), base, "f32", density), Path(name) / "out.gguf")
        written = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(out).tensors}
    assert (written["blk.0.attn_q.weight.lora_a"] == keep_largest(a, density).numpy()).all()


def converted(folder: Path, base: Path, out: Path) -> Path:
    return write_gguf(plan_lora(read_header(folder), json.loads((base / "config.json").read_text()), "f32"), out)


BIAS = f"base_model.model.{MODULE}.bias"
FACTORS = {
    f"base_model.model.{MODULE}.lora_A.weight": np.arange(8, dtype=np.float32).reshape(2, 4),
    f"base_model.model.{MODULE}.lora_B.weight": np.ones((4, 2), dtype=np.float32),
}
HALF = dict(list(FACTORS.items())[:1])


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (FACTORS, {"use_dora": True}, "use_dora"),
        ({**FACTORS, f"base_model.model.{MODULE}.lora_B.bias": np.ones(4, dtype=np.float32)}, {}, "biases"),
        (FACTORS, {"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({**FACTORS, BIAS: np.ones(4, dtype=np.float32)}, {"bias": "all"}, "biases"),
        (FACTORS, {"peft_type": "IA3"}, "LORA"),
        (FACTORS, {"fan_in_fan_out": True}, "transposed"),
        (FACTORS, {"r": 3}, "rank 2"),
        (HALF, {}, "only one of lora_A and lora_B"),
        ({**HALF, f"base_model.model.{MODULE}.lora_B.weight": np.full((4, 2), np.nan, dtype=np.float32)}, {}, "NaN"),
    ],
)
def test_what_a_file_cannot_say_is_refused_by_name(
    tmp_path: Path, base: Path, tensors: dict[str, Any], config: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        converted(write(tmp_path / "a", tensors, **config), base, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


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
    with pytest.raises(UserError, match=r"model_type 'gpt2' .* own converter, convert_lora_to_gguf\.py"):
        Architecture.of({"model_type": "gpt2"}, "convert_lora_to_gguf.py")
