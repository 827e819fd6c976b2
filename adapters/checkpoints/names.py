"""What tensors and files of a Hugging Face checkpoint are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")

_UNREAD = re.compile(
    r"(^|\.)(position_ids|token_type_ids|(original_)?inv_freq|(cos|sin)_cached|masked_bias|causal_mask"
    r"|relative_position_index|relative_coords_table|num_batches_tracked|embed_positions\.weights"
    r"|EncDecAttention\.relative_attention_bias\.weight)$"
)
_ATTENTION_MASK = re.compile(r"(^|\.)(attn|attention|crossattention)\.bias$")
_PREDICTION = re.compile(r"(^|\.)mtp(_layers|_block)?\.")
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")


def embedding_name(tensors: Iterable[str]) -> str | None:
    """The name of the input embedding among tensor names, or None."""
    return next((name for name in tensors if name.endswith(EMBEDDINGS)), None)


def shared_embedding_name(tensors: Iterable[str]) -> str | None:
    """The name of the embedding that an encoder and a decoder share (T5, BART) among tensor names, or None."""
    return next((name for name in tensors if f".{name}".endswith(".shared.weight")), None)


def head_name(tensors: Iterable[str]) -> str | None:
    """The name of the output head among tensor names, or None."""
    return next((name for name in tensors if name.endswith(HEADS)), None)


def is_unread(name: str, shape: Sequence[int]) -> bool:
    """Whether a stored tensor is a buffer that transformers computes anew or does not read when a model answers.

    Positions, causal masks (GPT-2's ``attn.bias``, 1 x 1 x n x n, which is no bias) and rotary frequencies. Such a
    tensor is copied, never merged; a checkpoint may lack it, and its value may differ.
    """
    if _UNREAD.search(name):
        return True
    is_square = len(shape) == 4 and tuple(shape[:2]) == (1, 1) and shape[2] == shape[3]
    return is_square and _ATTENTION_MASK.search(name) is not None


def is_prediction_layer(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to a layer that predicts tokens further ahead, which transformers does not load.

    Called ``mtp`` (Qwen3-Next), or stored as layers from ``num_hidden_layers`` on (DeepSeek-V3, GLM-4.5).
    """
    if _PREDICTION.search(name):
        return True
    config = config.get("text_config") or config
    ahead, layers = config.get("num_nextn_predict_layers"), config.get("num_hidden_layers")
    found = _LAYER.search(name)
    return bool(ahead) and isinstance(layers, int) and found is not None and int(found[2]) >= layers
