"""What tensors of a Hugging Face checkpoint are called, and what another checkpoint of the same model calls them.

Checkpoints of one model differ in the modules that wrap it: saved with or without a head (``layers.0...`` and
``model.layers.0...``), by an older or a newer version of transformers (``language_model.model.layers.0...`` and
``model.language_model.layers.0...``). The names without their wrappers are the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight",
)  # fmt: skip
HEADS = ("lm_head.weight", "embed_out.weight")

_UNREAD = re.compile(
    r"(^|\.)(position_ids|token_type_ids|(original_)?inv_freq|(cos|sin)_cached|masked_bias|causal_mask"
    r"|relative_position_index|relative_coords_table|num_batches_tracked|embed_positions\.weights"
    r"|EncDecAttention\.relative_attention_bias\.weight)$"
)
_ATTENTION_MASK = re.compile(r"(^|\.)(attn|attention|crossattention)\.bias$")
_TABLE = re.compile(r"(^|\.)(\w*embed\w*|wte|wpe|shared|lm_head|relative_attention_bias)\.weight$|embeddings?$")
_EXPERTS = re.compile(r"(^|\.)experts\.|(^|\.)(input|output)_linear\.weight$")
_PREDICTION = re.compile(r"(^|\.)mtp(_layers|_block)?\.")
_OF_ENCODERS = ("ForMaskedLM", "ForPreTraining", "Model")
_SPARE_HEAD = re.compile(
    r"^(\w+\.)?pooler\.|^cls\.(predictions|seq_relationship)\.|^vocab_(transform|layer_norm|projector)\."
    r"|^lm_head\.(dense|layer_norm|decoder)\.|^lm_head\.bias$|^head\.(dense|norm)\.|^decoder\.(bias|weight)$"
)
_LAYER = re.compile(r"(^|\.)layers\.(\d{1,9})\.")
_WRAPPERS = frozenset({"model", "language_model", "vision_model"})
_OLD_PARTS = {
    "block_sparse_moe.": "mlp.",
    "LayerNorm.gamma": "LayerNorm.weight",
    "LayerNorm.beta": "LayerNorm.bias",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


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


def matrices_of(name: str, shape: Sequence[int]) -> int:
    """How many matrices that multiply activations a tensor is: 1, one for each expert of a stack of them, or 0.

    Embeddings, heads and tables of positions hold a row for each token or place; biases of experts are rows as well.
    """
    if _TABLE.search(name) or name.endswith(("bias", "A_log")):
        return 0
    if len(shape) == 3:
        return shape[0] if _EXPERTS.search(name) else 0
    return 1 if len(shape) == 2 else 0


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


def is_spare_head(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor belongs to what an encoder was trained with and who embeds texts does not read: a pooler, the
    head of a masked language model. Saved by some classes, left out by others (``BertForMaskedLM``, ``BertModel``)."""
    architecture = str((config.get("architectures") or [""])[0])
    return architecture.endswith(_OF_ENCODERS) and _SPARE_HEAD.search(name) is not None


def expert_names(base: Collection[str], expert: Collection[str]) -> dict[str, str]:
    """The expert's name of every tensor of the base that it calls otherwise.

    Empty where the names agree, and where they belong to different models: then they are compared as they are.
    """
    ours, theirs = set(base), set(expert)
    missing, extra = ours - theirs, theirs - ours
    if not missing or not extra:
        return {}
    wrappers = _WRAPPERS | _prefixes(missing, extra) | _prefixes(extra, missing)
    bare_ours, bare_theirs = _by_bare_name(ours, wrappers), _by_bare_name(theirs, wrappers)
    if len(bare_ours) < len(ours) or len(bare_theirs) < len(theirs):
        return {}  # two tensors would become one
    return {
        name: bare_theirs[bare] for bare, name in bare_ours.items() if bare in bare_theirs and bare_theirs[bare] != name
    }


def _prefixes(wrapped: Iterable[str], bare: Collection[str]) -> set[str]:
    """First parts of names without which they are names of the other side (``bert.encoder...``, ``encoder...``)."""
    return {first for first, _, rest in (name.partition(".") for name in wrapped) if rest in bare}


def _by_bare_name(names: Iterable[str], wrappers: Collection[str]) -> dict[str, str]:
    found = {}
    for name in names:
        bare = ".".join(part for part in name.split(".") if part not in wrappers)
        for old, new in _OLD_PARTS.items():
            bare = bare.replace(old, new)
        found[bare] = name
    return found
