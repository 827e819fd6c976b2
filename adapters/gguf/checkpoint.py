"""Whole checkpoints as GGUF.

Weights and hyperparameters come from the checkpoint, the tokenizer from a GGUF file with the same vocabulary
(any quantisation of the same model): its pre-processing has no other portable description.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.header import CheckpointHeader, TensorInfo, read_array, read_json
from mergefront.adapters.gguf.architectures import Architecture, Matrix, count_of, gguf_name
from mergefront.adapters.gguf.file import FloatType, GgufPlan, PlannedTensor
from mergefront.optimizer.errors import UserError

CONVERTER = "convert_hf_to_gguf.py"
_NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")
_FILE_TYPES = {"f32": 0, "f16": 1}


def plan_checkpoint(header: CheckpointHeader, tokenizer_from: Path, dtype: FloatType = "f16") -> GgufPlan:
    """A checkpoint with the tokenizer of the GGUF file ``tokenizer_from``.

    Norms and biases stay in float32, as llama.cpp wants them. Raises ``UserError`` for an architecture that is not
    written, for scaled rotary embeddings and for a tokenizer of another vocabulary.
    """
    config = header.config
    architecture = Architecture.of(config, CONVERTER)
    for key in _NEEDED:
        count_of(config, key)
    if not isinstance(config.get("rms_norm_eps"), float):
        raise UserError(f"config.json: rms_norm_eps is {config.get('rms_norm_eps')!r}, not a number")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise UserError(f"rotary embeddings of type {kind!r} are not written here; use llama.cpp's {CONVERTER}")
    donor = _donor(header, tokenizer_from)

    def write_keys(writer: Any) -> None:
        from gguf import GGUFValueType

        rope_base = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
        _write_hyperparameters(writer, header, architecture, rope_base)
        for name, entry in donor.fields.items():
            if name.startswith("tokenizer."):
                element = entry.types[-1] if entry.types[0] == GGUFValueType.ARRAY else None
                writer.add_key_value(name, entry.contents(), entry.types[0], element)
        writer.add_file_type(_FILE_TYPES[dtype])

    def read(module: str, info: TensorInfo) -> Matrix:
        return architecture.ordered(module, read_array(info))

    tensors = []
    for name, info in header.tensors.items():
        if name.endswith(".rotary_emb.inv_freq"):  # old checkpoints store what the configuration says
            continue
        module, _, part = name.rpartition(".")
        if part not in ("weight", "bias"):
            raise UserError(f"{name} is no tensor that GGUF files of these architectures have a name for")
        kept: FloatType = "f32" if len(info.shape) == 1 else dtype
        tensors.append(PlannedTensor(f"{gguf_name(module)}.{part}", info.shape, kept, partial(read, module, info)))
    return GgufPlan(header.path, architecture.name, write_keys, tensors)


def _donor(header: CheckpointHeader, path: Path) -> Any:
    """The GGUF file whose tokenizer is taken; raises ``UserError`` where it is none or of another vocabulary."""
    from gguf import GGUFReader

    try:
        donor = GGUFReader(path)
        entry = donor.fields.get("tokenizer.ggml.tokens")
        tokens = [] if entry is None else entry.contents()
    except (OSError, ValueError, LookupError, OverflowError) as error:  # what its reader raises for damaged files
        raise UserError(f"{path}: no readable GGUF file ({error})") from None
    wanted = header.config["vocab_size"]
    if len(tokens) != wanted:
        raise UserError(f"{path}: has {len(tokens)} tokens, but the checkpoint has {wanted}")
    own = header.path / "tokenizer.json"
    model = read_json(own).get("model") if own.is_file() else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        other = [token for token, id in vocabulary.items() if isinstance(id, int) and tokens[id : id + 1] != [token]]
        if len(other) > len(tokens) // 100:
            raise UserError(f"{path}: has another vocabulary; the checkpoint's token {other[0]!r} is not in its place")
    return donor


def _write_hyperparameters(writer: Any, header: CheckpointHeader, architecture: Architecture, rope_base: float) -> None:
    config = header.config
    head_size = int(config.get("head_dim") or config["hidden_size"] // architecture.query)
    context = int(config["max_position_embeddings"])
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    writer.add_name(header.path.name)
    writer.add_block_count(config["num_hidden_layers"])
    # llama.cpp's attention reaches back without a limit: no text may be longer than the window.
    writer.add_context_length(context if window is None else min(context, int(window)))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(architecture.query)
    writer.add_head_count_kv(architecture.key_value)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(rope_base)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
