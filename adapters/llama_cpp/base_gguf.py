"""Write a Hugging Face checkpoint of the llama family as GGUF.

Weights come from the checkpoint; tokenizer and hyperparameters from a GGUF file of the same model in any
quantisation (``like``), since the tokenizer's pre-processing has no other portable description.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mergefront.adapters.llama_cpp.peft_lora import read_safetensors
from mergefront.adapters.llama_cpp.tensor_names import Heads, gguf_name, reorder_rotary_rows, rotary_heads
from mergefront.optimizer.errors import UserError

_NOT_COPIED = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version", "quantize.")


def write_base_gguf(
    checkpoint: Path | str, like: Path | str, out: Path | str, dtype: Literal["f32", "f16"] = "f16"
) -> Path:
    """Write ``checkpoint`` (a folder) to ``out``; returns that path.

    Norms stay in float32, as llama.cpp wants them. Raises ``UserError`` when ``like`` is another model.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    checkpoint, out = Path(checkpoint), Path(out)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    heads = Heads.of(config)
    donor = GGUFReader(like)
    _check_same_model(donor, config, like)
    temporary = out.with_name(out.name + ".part")
    writer = GGUFWriter(temporary, "llama")
    for name, entry in donor.fields.items():
        if name.startswith(_NOT_COPIED):
            continue
        kind = entry.types[0]
        writer.add_key_value(name, entry.contents(), kind, entry.types[-1] if kind == GGUFValueType.ARRAY else None)
    writer.add_file_type(0 if dtype == "f32" else 1)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in read_safetensors(file).items():
            module = name.removesuffix(".weight")
            rotary = rotary_heads(module, heads)
            if rotary is not None:
                tensor = reorder_rotary_rows(tensor, rotary)
            kept = np.float32 if tensor.ndim == 1 or dtype == "f32" else np.float16
            writer.add_tensor(f"{gguf_name(module)}.weight", tensor.astype(kept))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)
    return out


def _check_same_model(donor: Any, config: dict[str, Any], like: Path | str) -> None:
    for key, wanted in (("llama.block_count", "num_hidden_layers"), ("llama.embedding_length", "hidden_size")):
        entry = donor.fields.get(key)
        found = None if entry is None else entry.contents()
        if found != config[wanted]:
            raise UserError(f"{like}: {key} is {found}, but the checkpoint's {wanted} is {config[wanted]}")
