"""LoRAs on the Hub become GGUF files by their names, and nothing of their base is fetched but what is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hub_server import Hub
from safetensors.numpy import save_file

from mergefront.adapters.gguf.conversion import plan_files
from mergefront.optimizer.errors import UserError


def test_a_lora_and_the_base_that_it_names_are_found_by_name(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    base, lora = tmp_path / "files" / "base", tmp_path / "files" / "lora"
    for folder in (base, lora):
        folder.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_attention_heads": 2}))
    save_file({"model.norm.weight": np.ones(1_000_000, dtype=np.float32)}, base / "model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "somebody/base"}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {name.format("A"): np.ones((2, 4), np.float32), name.format("B"): np.ones((4, 2), np.float32)}
    save_file(factors, lora / "adapter_model.safetensors")
    hub.add("somebody/base", base)
    hub.add("somebody/maths", lora)
    ((out, plan),) = plan_files(["somebody/maths"], tmp_path, base=None, tokenizer_from=None, dtype="f16").items()
    assert (out.name, plan.architecture) == ("maths.gguf", "qwen2")
    assert hub.sent("model.safetensors") < 200_000, "of four million bytes"
    hub.repositories.pop("somebody/base")
    with pytest.raises(UserError, match="somebody/maths: its base model cannot be read; name it with --base"):
        plan_files(["somebody/maths"], tmp_path, base="somebody/other", tokenizer_from=None, dtype="f16")
