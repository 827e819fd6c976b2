"""Whether two configurations (config.json) describe one model: which keys differ, and what each means for a merge.

A merge has one configuration, the base's. A key that decides which function the weights are part of must not differ
(``refuse``); one that changes the numbers a little is worth knowing (``report``); the rest says nothing of the
computation (``silent``). What the table does not know is a note.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mergefront.optimizer.recipes.stacks import is_text_section, is_tower

Verdict = Literal["refuse", "report", "silent"]

_REFUSED = """
    model_type architectures is_encoder_decoder num_hidden_layers encoder_layers decoder_layers num_decoder_layers
    num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
    num_key_value_heads num_kv_heads n_head_kv multi_query head_dim d_kv kv_channels qk_rope_head_dim qk_nope_head_dim
    v_head_dim linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim mamba_n_heads
    mamba_d_head mamba_n_groups ssm_state_size n_groups
    layer_types mlp_layer_types layers_block_type block_types attention_types hybrid_override_pattern
    attn_layer_indices attn_layer_period attn_layer_offset expert_layer_period expert_layer_offset num_kv_shared_layers
    num_experts_per_tok num_experts_per_token moe_topk top_k_experts num_experts num_local_experts n_routed_experts
    n_group topk_group mlp_only_layers decoder_sparse_step first_k_dense_replace interleave_moe_layer_step
    position_embedding_type alibi parallel_attn use_parallel_residual new_decoder_architecture no_rope_layers
    patch_size temporal_patch_size tubelet_size conv_kernel conv_stride
"""
_REPORTED = """
    rope_parameters max_position_embeddings n_positions
    rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon batch_norm_eps eps
    sliding_window use_sliding_window attention_window_size attention_chunk_size
    hidden_act hidden_activation activation_function feed_forward_proj dense_act_fn mlp_hidden_act projector_hidden_act
    attn_logit_softcapping final_logit_softcapping query_pre_attn_scalar attention_multiplier embedding_multiplier
    residual_multiplier logits_scaling logit_scale scale_embedding scale_attn_weights
    scale_attn_by_inverse_layer_idx attention_bias mlp_bias qkv_bias use_qk_norm clip_qkv swiglu_limit
    norm_topk_prob routed_scaling_factor scoring_func topk_method
    image_size image_token_id image_token_index video_token_id audio_token_id spatial_merge_size vision_feature_layer
    vision_feature_select_strategy decoder_start_token_id pooling_type classifier_pooling id2label is_decoder
    add_cross_attention use_bidirectional_attention
"""
_SILENT = """
    dtype torch_dtype transformers_version _name_or_path name_or_path use_cache auto_map tokenizer_class
    tie_word_embeddings attn_implementation _attn_implementation _attn_implementation_autoset _flash_attn_2_enabled
    experts_implementation eos_token_id bos_token_id pad_token_id sep_token_id cls_token_id mask_token_id
    unk_token_id forced_eos_token_id forced_bos_token_id vocab_size hidden_size intermediate_size d_model d_ff
    n_embd n_inner label2id problem_type _commit_hash forced_decoder_ids finetuning_task task_specific_params
    quantization_config pretraining_tp gradient_checkpointing torchscript output_attentions output_hidden_states
    return_dict use_return_dict use_bfloat16 tf_legacy_loss pruned_heads prefix chunk_size_feed_forward
    num_logits_to_keep output_router_logits router_jitter_noise use_mamba_kernels disable_custom_kernels init_std
    num_nextn_predict_layers unsloth_version unsloth_fixed model_name cross_attention_hidden_size max_length
    min_length do_sample temperature top_k top_p typical_p num_beams num_beam_groups num_return_sequences
    repetition_penalty length_penalty no_repeat_ngram_size early_stopping diversity_penalty
    encoder_no_repeat_ngram_size bad_words_ids begin_suppress_tokens suppress_tokens
    exponential_decay_length_penalty remove_invalid_values output_scores return_dict_in_generate
"""
VERDICTS: Mapping[str, Verdict] = {
    **dict.fromkeys(_SILENT.split(), "silent"),
    **dict.fromkeys(_REPORTED.split(), "report"),
    **dict.fromkeys(_REFUSED.split(), "refuse"),
}
"""What a difference in a key means, at any depth (``text_config.head_dim``, ``rope_parameters.rope_theta``)."""
_OF_TRAINING = re.compile(r"dropout|pdrop|layerdrop|drop_path|_loss|loss_|initializer|mask_(time|feature)|spec_augment")
_SAID_BY_LAYER_TYPES = ("max_window_layers", "sliding_window_pattern", "full_attention_interval")
_DEPTH = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_ROTARY = {
    "rope_theta": "rope_theta", "rotary_emb_base": "rope_theta", "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}  # fmt: skip
"""Rotary settings that transformers 4 wrote beside ``rope_scaling``, by what they are in ``rope_parameters``."""
_DEEPEST = 8
_MOST_LAYERS = 10_000
"""What a stranger's configuration may hold before it is only compared as it is written."""
EVERYTHING = "*"
"""What allows every key that differs."""
_ABSENT = object()


@dataclass(frozen=True)
class Differences:
    """Keys that differ, with what each side says: ``refused`` ones, ``reported`` ones, and ``unknown`` ones."""

    refused: dict[str, str] = field(default_factory=dict)
    reported: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def compare_configurations(
    base: Mapping[str, Any], expert: Mapping[str, Any], allow: Collection[str] = (), *, sliced: bool = False
) -> Differences:
    """What differs between two configurations, by key, as "base says X, expert says Y".

    ``allow`` names keys whose difference is harmless: a key (``rope_theta``), a path (``text_config.head_dim``), or
    a whole section. With ``sliced`` depth and lists with an entry per layer may differ. Where transformers knows the
    model, it is asked what each configuration comes to: what a key left out, or switched off by another, stands for.
    """
    if not base or not expert:
        return Differences()
    ours, theirs = _flat(base), _flat(expert)
    keys = ours.keys() | theirs.keys()
    if any(_verdict(key) != "silent" and ours.get(key, _ABSENT) != theirs.get(key, _ABSENT) for key in keys):
        ours, theirs = _flat(_complete(base)), _flat(_complete(expert))
    found: dict[str, dict[str, str]] = {"refuse": {}, "report": {}, "unknown": {}, "silent": {}}
    for key in sorted(ours.keys() | theirs.keys()):
        first, second = ours.get(key, _ABSENT), theirs.get(key, _ABSENT)
        if key == "architectures":
            same = _ABSENT in (first, second) or str(first).lower() == str(second).lower()  # saved without its head
        else:
            same = _same(first, second)
        if same or is_allowed(key, allow) or (sliced and _of_depth(key, ours, theirs)):
            continue
        if key.rpartition(".")[2] in _SAID_BY_LAYER_TYPES and any("layer_types" in other for other in ours):
            continue
        verdict = _verdict(key)
        # What only one side says may be the other's default.
        if verdict == "refuse" and _ABSENT in (first, second):
            verdict = "report"
        found[verdict][key] = f"base says {_said(first)}, expert says {_said(second)}"
    return Differences(found["refuse"], found["report"], found["unknown"])


def compare_texts(
    base: Mapping[str, Any], expert: Mapping[str, Any], allow: Collection[str] = (), *, sliced: bool = False
) -> Differences:
    """``compare_configurations`` of what two configurations say of the stack that reads text.

    Towers beside it give the model, and the text in it, another type: that alone is only reported.
    """
    ours, theirs = (_text(_complete(configuration)) for configuration in (base, expert))
    types = [str(section.get("model_type", "")).removesuffix("_text") for section in (ours, theirs)]
    found = compare_configurations(ours, theirs, (*allow, "model_type", "architectures"), sliced=sliced)
    if types[0] == types[1] or is_allowed("model_type", allow):
        return found
    return replace(found, reported={"model_type": f"base says {types[0]!r}, expert says {types[1]!r}"} | found.reported)


def _text(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section that is about text, or all that is about no tower."""
    for key, value in configuration.items():
        if isinstance(value, Mapping) and (is_text_section(key) or key == "thinker_config"):
            return _text(value)
    return {key: value for key, value in configuration.items() if not is_tower(key.replace("video", "vision"))}


def with_vocabulary(config: Mapping[str, Any], was: int | None, rows: int | None) -> dict[str, Any]:
    """A configuration with another number of rows of embedding and head, in nested configurations too."""
    return {
        key: rows if "vocab_size" in key and value == was
        else with_vocabulary(value, was, rows) if isinstance(value, Mapping) else value
        for key, value in config.items()
    }  # fmt: skip


def is_allowed(key: str, allow: Collection[str]) -> bool:
    """Whether ``allow`` names a key, a part of its path, or everything."""
    names = {"rope_parameters" if allowed == "rope_scaling" else allowed for allowed in allow}
    return any(name == EVERYTHING or f".{name}." in f".{key}." for name in names)


def known_keys(*configurations: Mapping[str, Any]) -> set[str]:
    """What an ``allow`` list may name: keys of the table and of the configurations, and sections of these."""
    found = {EVERYTHING, "rope_theta", "rope_scaling", *VERDICTS}
    for configuration in configurations:
        for key in _flat(configuration):
            parts = key.split(".")
            found |= {".".join(parts[start:end]) for end in range(1, len(parts) + 1) for start in range(end)}
    return found


def _verdict(key: str) -> Verdict | Literal["unknown"]:
    """What a difference in a key means: the last part of its path that the table knows decides."""
    for part in reversed(key.split(".")):
        if part in VERDICTS:
            return VERDICTS[part]
        if _OF_TRAINING.search(part):
            return "silent"
    return "unknown"


def _flat(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The values by path, rotary settings in one form, and of the architecture only what has a head."""
    return dict(_paths(configuration, ""))


def _paths(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    rotary = "rope_parameters." in prefix
    for key, value in (section if rotary else _one_rotary_form(section)).items():
        path = f"{prefix}{key}"
        if key == "architectures":
            heads = [name for name in value or () if "For" in name]
            if heads:
                yield path, heads
        elif isinstance(value, Mapping) and value and path.count(".") < _DEEPEST:
            yield from _paths(value, f"{path}.")
        else:
            yield path, value


def _one_rotary_form(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section with its rotary settings under ``rope_parameters``, as transformers 5 has them."""
    made = dict(section)
    rotary = dict(made.pop("rope_scaling", None) or {})
    rotary |= made.pop("rope_parameters", None) or {}
    beside = {new: made.pop(old) for old, new in _ROTARY.items() if made.get(old) is not None}
    if not any(isinstance(value, Mapping) for value in rotary.values()):
        rotary = {**beside, **rotary}
        if "type" in rotary:
            rotary.setdefault("rope_type", rotary.pop("type"))
    if rotary:
        made["rope_parameters"] = {"rope_type": "default", **rotary} if "rope_theta" in rotary else rotary
    return made


def _complete(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration with transformers' defaults for what it leaves out, where transformers knows the model."""
    depths = [value for key, value in _flat(configuration).items() if key.rpartition(".")[2] in _DEPTH]
    if not all(isinstance(depth, int) and depth <= _MOST_LAYERS for depth in depths):
        return configuration  # its class would make lists of that length
    try:
        from transformers import CONFIG_MAPPING

        made = CONFIG_MAPPING[str(configuration.get("model_type"))].from_dict(dict(configuration)).to_dict()
    except Exception:  # a configuration from a stranger, in a form that its class does not know
        return configuration
    return {**made, "architectures": configuration.get("architectures")}


def _same(first: Any, second: Any) -> bool:
    return bool(first == second) or {id(first), id(second)} == {id(None), id(_ABSENT)}


def _of_depth(key: str, *configurations: Mapping[str, Any]) -> bool:
    """Whether a key is the number of layers, or has an entry for each of them."""
    path, _, leaf = key.rpartition(".")
    if leaf in _DEPTH:
        return True
    for configuration in configurations:
        depth = next((configuration[name] for at in _DEPTH if (name := f"{path}.{at}".lstrip(".")) in configuration), 0)
        value = configuration.get(key)
        if isinstance(value, (list, tuple)) and len(value) != depth:
            return False
    return all(isinstance(configuration.get(key), (list, tuple)) for configuration in configurations)


def _said(value: Any) -> str:
    text = "nothing" if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
