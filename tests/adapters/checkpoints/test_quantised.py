"""Packed integers are never merged as weights: quantised checkpoints are known by configuration or by tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.quantised import quantisation, refuse_quantised
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.errors import UserError

FLOATS = {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4), "model.norm.weight": torch.ones(4)}
PART = "model.layers.0.mlp.up_proj"


def stored(path: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None) -> Path:
    path.mkdir(parents=True)
    save_file(dict(tensors), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "bitsandbytes"),
        ({"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}, "mxfp4"),
        ({"quantization_config": None}, None),
        ({}, None),
    ],
)
def test_the_configuration_names_the_method(tmp_path: Path, config: dict[str, Any], method: str | None) -> None:
    assert quantisation(read_header(stored(tmp_path / "m", FLOATS, config))) == method


@pytest.mark.parametrize(
    ("packed", "method"),
    [
        ({f"{PART}.qweight": torch.ones(1, 4, dtype=torch.int32), f"{PART}.g_idx": torch.zeros(4).int()}, "gptq"),
        ({f"{PART}.qweight": torch.ones(4, 1, dtype=torch.int32)}, "gptq or awq"),
        ({f"{PART}.weight": torch.ones(8, 1).byte(), f"{PART}.weight.absmax": torch.ones(1)}, "bitsandbytes"),
        ({f"{PART}.weight_packed": torch.ones(4, 1).int()}, "compressed-tensors"),
        ({f"{PART}.weight": torch.ones(4, 4).to(torch.float8_e4m3fn)}, "fp8"),
        ({"experts.gate_up_proj_blocks": torch.ones(2, 4).byte()}, "mxfp4"),
        ({f"{PART}.weight": torch.ones(4, 4).to(torch.int8)}, f"{PART}.weight is I8"),
    ],
)
def test_without_a_configuration_the_tensors_tell(tmp_path: Path, packed: dict[str, torch.Tensor], method: str) -> None:
    assert quantisation(read_header(stored(tmp_path / "m", {**FLOATS, **packed}))) == method


def test_integers_that_are_no_weights_do_not_make_a_checkpoint_quantised(tmp_path: Path) -> None:
    tensors = {**FLOATS, "embeddings.position_ids": torch.arange(4), "router.routes": torch.arange(4).int()}
    assert refuse_quantised(read_header(stored(tmp_path / "m", tensors)), "the base model") == []


def test_the_way_out_that_is_named_leads_to_weights(tmp_path: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(tmp_path / "packed")
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    packed = dict(tensors)
    for name in (name for name in tensors if name.endswith("proj.weight")):
        scale = tensors[name].abs().max() / 448
        packed[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        packed[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(packed, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    (problem,) = refuse_quantised(read_header(tmp_path / "packed"), "the base model")
    assert "FineGrainedFP8Config(dequantize=True)" in problem and "save_original_format=False" in problem
    way_out = FineGrainedFP8Config(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", quantization_config=way_out)
    model.save_pretrained(tmp_path / "saved", save_original_format=False)
    assert quantisation(read_header(tmp_path / "saved")) is None
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.allclose(saved[name].float(), tensors[name], atol=0.1) for name in tensors)


def test_quantised_bases_and_experts_are_refused_with_the_way_out(tmp_path: Path) -> None:
    plain = stored(tmp_path / "plain", FLOATS)
    packed = stored(tmp_path / "packed", FLOATS, {"quantization_config": {"quant_method": "fp8"}})
    for base, expert in ((packed, plain), (plain, packed), (None, packed)):
        with pytest.raises(UserError, match=r"quantised \(fp8\).*dequantize=True.*bfloat16"):
            MergeEngine(base, {"maths": expert})
