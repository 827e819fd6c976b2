"""Write a Hugging Face checkpoint of the llama family as GGUF.

Weights and hyperparameters come from the checkpoint, the tokenizer from a GGUF file with the same vocabulary
(any quantisation of the same model): its pre-processing has no other portable description.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mergefront.adapters.checkpoints.header import read_array, read_header
from mergefront.optimizer.errors import UserError

from .tensor_names import Heads, gguf_file, gguf_name, in_rotary_order


def write_base_gguf(
    checkpoint: Path | str, tokenizer_from: Path | str, out: Path | str, dtype: Literal["f32", "f16"] = "f16"
) -> Path:
    """Write ``checkpoint`` (a folder) to ``out`` with the tokenizer of a GGUF file; returns ``out``.

    Norms stay in float32, as llama.cpp wants them. Raises ``UserError`` for another family of models, for
    scaled rotary embeddings and for a tokenizer of another vocabulary.
    """
    from gguf import GGUFReader, GGUFValueType

    checkpoint, out = Path(checkpoint), Path(out)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    heads = Heads.of(config)
    donor = GGUFReader(tokenizer_from)
    tokens = donor.fields.get("tokenizer.ggml.tokens")
    found = 0 if tokens is None else len(tokens.data)
    if found != config["vocab_size"]:
        raise UserError(f"{tokenizer_from}: has {found} tokens, but the checkpoint has {config['vocab_size']}")
    with gguf_file(out) as writer:
        _write_hyperparameters(writer, config, heads, checkpoint)
        for name, entry in donor.fields.items():
            if name.startswith("tokenizer."):
                kind = entry.types[0]
                element = entry.types[-1] if kind == GGUFValueType.ARRAY else None
                writer.add_key_value(name, entry.contents(), kind, element)
        writer.add_file_type(0 if dtype == "f32" else 1)
        for name, info in read_header(checkpoint).tensors.items():
            module = name.removesuffix(".weight")
            tensor = in_rotary_order(module, read_array(info), heads)
            kept = np.float32 if tensor.ndim == 1 or dtype == "f32" else np.float16
            writer.add_tensor(f"{gguf_name(module)}.weight", tensor.astype(kept))
    return out


def _write_hyperparameters(writer: Any, config: dict[str, Any], heads: Heads, checkpoint: Path) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{checkpoint}: rotary embeddings of type {rope['rope_type']!r} are not written yet")
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads.query)
    writer.add_name(checkpoint.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads.query)
    writer.add_head_count_kv(heads.key_value)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
