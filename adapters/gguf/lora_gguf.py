"""Write a PEFT LoRA as a GGUF LoRA.

llama.cpp multiplies by ``request scale * alpha / rank`` with one alpha for the whole file, so that
differences between modules (alpha or rank patterns, rsLoRA) are folded into B: the file then means
exactly what PEFT means, and scale s in a request is weight s in a recipe.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from mergefront.adapters.gguf.peft_lora import PeftLora, read_peft_lora
from mergefront.adapters.gguf.tensor_names import Heads, gguf_name, reorder_rotary_rows, rotary_heads
from mergefront.optimizer.errors import UserError


def write_lora_gguf(
    lora: Path | str, base_model: Path | str, out: Path | str, dtype: Literal["f32", "f16"] = "f32"
) -> Path:
    """Convert the LoRA folder ``lora`` of the checkpoint folder ``base_model``; returns ``out``.

    Only the checkpoint's config.json is read. Raises ``UserError`` for a LoRA that llama.cpp cannot apply.
    """
    read = read_peft_lora(Path(lora))
    config = json.loads((Path(base_model) / "config.json").read_text(encoding="utf-8"))
    heads = Heads.of(config)
    out = Path(out)
    _write(read, heads, out, np.dtype(np.float32 if dtype == "f32" else np.float16))
    return out


def _write(lora: PeftLora, heads: Heads, out: Path, dtype: np.dtype) -> None:
    from gguf import GGUFWriter

    alpha = next(iter(lora.modules.values())).alpha
    if not np.isfinite(alpha) or alpha == 0:
        raise UserError(f"{lora.folder}: lora_alpha is {alpha:g}; the LoRA has no effect")
    temporary = out.with_name(out.name + ".part")
    writer = GGUFWriter(temporary, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for module, share in lora.modules.items():
        name = gguf_name(module)
        if name == "token_embd":
            raise UserError(f"{lora.folder}: it changes the embeddings, which this converter does not write")
        b = share.b
        rotary = rotary_heads(module, heads)
        if rotary is not None:
            b = reorder_rotary_rows(b, rotary)
        writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(share.a, dtype=dtype))
        writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(b * (share.alpha / alpha), dtype=dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)
