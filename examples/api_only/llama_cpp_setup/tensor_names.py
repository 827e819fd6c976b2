"""GGUF files of the llama family: names of tensors, the order of rows that llama.cpp wants, writing all or nothing.

Hugging Face keeps the two halves of each head's rotary dimensions one after the other; llama.cpp keeps
their pairs side by side. So the rows of q_proj and k_proj (and of their LoRA's B) are reordered.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.errors import UserError

Matrix = NDArray[np.float32]

_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Heads:
    """Numbers of query heads and of key/value heads."""

    query: int
    key_value: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Heads:
        """From a checkpoint's config.json; raises ``UserError`` for models of another family."""
        family = config.get("model_type")
        if family not in ("llama", "mistral"):
            raise UserError(f"model_type is {family!r}; GGUF files are written for llama and mistral models only")
        query = int(config["num_attention_heads"])
        return cls(query, int(config.get("num_key_value_heads") or query))


def gguf_name(module: str) -> str:
    """The GGUF name (without ``.weight``) of a module of the checkpoint; raises ``UserError`` for another's."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if found is None or found[2] not in _LAYER:
        raise UserError(f"{module} is no module of a llama model that GGUF files have a name for")
    return f"blk.{found[1]}.{_LAYER[found[2]]}"


def in_rotary_order(module: str, matrix: Matrix, heads: Heads) -> Matrix:
    """A module's rows as llama.cpp wants them: those of q_proj and k_proj reordered."""
    if module.endswith("q_proj"):
        return reorder_rotary_rows(matrix, heads.query)
    return reorder_rotary_rows(matrix, heads.key_value) if module.endswith("k_proj") else matrix


def reorder_rotary_rows(matrix: Matrix, heads: int) -> Matrix:
    """Rows ``(head, half, place)`` become ``(head, place, half)``; ``matrix`` is ``out x anything``."""
    rows, width = matrix.shape
    if rows % (2 * heads):
        raise UserError(f"{rows} rows cannot be split into {heads} heads of even size")
    return np.ascontiguousarray(matrix.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width))


@contextmanager
def gguf_file(out: Path) -> Iterator[Any]:
    """A writer of GGUF; its keys and tensors are under ``out`` once the block is left, all or none of them."""
    from gguf import GGUFWriter

    temporary = out.with_name(out.name + ".part")
    writer = GGUFWriter(temporary, "llama")
    yield writer
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(out)
