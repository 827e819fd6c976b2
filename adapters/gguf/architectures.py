"""The architectures that are written as GGUF: their tensors' names, and the order of rows that llama.cpp wants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INTERLEAVED: Mapping[str, bool] = {"llama": True, "mistral": True, "qwen2": False, "qwen3": False}
"""By ``model_type``: whether llama.cpp keeps the pairs of rotary dimensions side by side, as it does of its first
architecture, "llama", which mistral models are written as. transformers keeps the two halves of a head in turn."""


@dataclass(frozen=True)
class Architecture:
    """What a model's config.json says of how it is written.

    ``name`` is GGUF's; ``query`` and ``key_value`` are numbers of heads, ``interleaved`` says whether their rows are
    reordered.
    """

    name: str
    query: int
    key_value: int
    interleaved: bool

    @classmethod
    def of(cls, config: Mapping[str, Any], converter: str) -> Architecture:
        """From a config.json; raises ``UserError`` with llama.cpp's own ``converter`` for another architecture."""
        kind = str(config.get("model_type"))
        if kind not in _INTERLEAVED:
            raise UserError(
                f"model_type {kind!r} is not written as GGUF here ({', '.join(_INTERLEAVED)} are); "
                f"use llama.cpp's own converter, {converter}"
            )
        interleaved = _INTERLEAVED[kind]
        query = count_of(config, "num_attention_heads")
        key_value = count_of(config, "num_key_value_heads") if config.get("num_key_value_heads") else query
        return cls("llama" if interleaved else kind, query, key_value, interleaved)

    def ordered(self, module: str, rows: Matrix) -> Matrix:
        """A module's rows (of its weight, its bias or its LoRA's B) as llama.cpp wants them."""
        heads = {"q_proj": self.query, "k_proj": self.key_value}.get(module.rpartition(".")[2])
        return reorder_rotary_rows(rows, heads) if self.interleaved and heads is not None else rows


def count_of(config: Mapping[str, Any], key: str) -> int:
    """A number of config.json above 0; raises ``UserError`` for anything else."""
    found = config.get(key)
    if not isinstance(found, int) or found < 1:
        raise UserError(f"config.json: {key} is {found!r}, not a number above 0")
    return found


def gguf_name(module: str) -> str:
    """The GGUF name (without ``.weight``) of a module of the checkpoint; raises ``UserError`` for another's."""
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    found = re.fullmatch(r"model\.layers\.(\d{1,9})\.(.+)", module)
    if found is None or found[2] not in _LAYER:
        raise UserError(f"{module} is no module that GGUF files of these architectures have a name for")
    return f"blk.{found[1]}.{_LAYER[found[2]]}"


def reorder_rotary_rows(rows: Matrix, heads: int) -> Matrix:
    """Rows ``(head, half, place)`` become ``(head, place, half)``; ``rows`` is ``out x anything``, or ``out``."""
    count, *width = rows.shape
    if count % (2 * heads):
        raise UserError(f"{count} rows cannot be split into {heads} heads of even size")
    return np.ascontiguousarray(rows.reshape(heads, 2, count // heads // 2, *width).swapaxes(1, 2).reshape(rows.shape))
