"""Write a PEFT LoRA as a GGUF LoRA.

llama.cpp multiplies by ``request scale * alpha / rank`` with one alpha for the whole file, so that
differences between modules (alpha or rank patterns, rsLoRA) are folded into B. The file then means
exactly what PEFT means, and scale s in a request is weight s in a recipe.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from mergefront.adapters.checkpoints.header import CheckpointHeader, read_array, read_header
from mergefront.adapters.checkpoints.lora import LoraModule, read_lora
from mergefront.optimizer.errors import UserError

from .tensor_names import Heads, Matrix, gguf_file, gguf_name, in_rotary_order


def write_lora_gguf(
    lora: Path | str, base_model: Path | str, out: Path | str, dtype: Literal["f32", "f16"] = "f32"
) -> Path:
    """Convert the LoRA folder ``lora`` of the checkpoint folder ``base_model``; returns ``out``.

    Only the checkpoint's config.json is read. Raises ``UserError`` for a LoRA that llama.cpp cannot apply.
    """
    header, out = read_header(lora), Path(out)
    modules = _modules(header)
    heads = Heads.of(json.loads((Path(base_model) / "config.json").read_text(encoding="utf-8")))
    kept = np.float32 if dtype == "f32" else np.float16
    alpha = modules[0].scaling * modules[0].rank
    if not np.isfinite(alpha) or alpha == 0:
        raise UserError(f"{header.path}: lora_alpha is {alpha:g}; the LoRA has no effect")
    with gguf_file(out) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for module in modules:
            name = gguf_name(module.target.removesuffix(".weight"))
            a, b = _factor(header, module.a), _factor(header, module.b)
            b = in_rotary_order(module.target.removesuffix(".weight"), b, heads)
            writer.add_tensor(f"{name}.weight.lora_a", np.ascontiguousarray(a, dtype=kept))
            share = module.scaling * module.rank / alpha
            writer.add_tensor(f"{name}.weight.lora_b", np.ascontiguousarray(b * share, dtype=kept))
    return out


def _modules(header: CheckpointHeader) -> list[LoraModule]:
    """The adapted linear layers by name. Raises ``UserError`` where the file could not say what the LoRA does."""
    if header.kind != "lora":
        raise UserError(f"{header.path}: has no adapter_config.json; this is no PEFT LoRA")
    contents = read_lora(header)
    modules = contents.modules
    if contents.beyond_matrices is not None:
        raise UserError(f"{header.path}: it also changes biases or whole modules ({contents.beyond_matrices})")
    if not modules:
        raise UserError(f"{header.path}: holds no LoRA matrices")
    for module in modules.values():
        if not module.is_linear:
            raise UserError(
                f"{header.path}: {module.target} is an embedding, a convolution or stored transposed; it is not written"
            )
    return [modules[target] for target in sorted(modules)]


def _factor(header: CheckpointHeader, name: str) -> Matrix:
    matrix = read_array(header.tensors[name])
    if not np.isfinite(matrix).all():
        raise UserError(f"{header.path}: {name} has NaN or infinite entries")
    return matrix
