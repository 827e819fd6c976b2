"""Configurations of one model: what must not differ, what is worth a line, and what says nothing of the computation."""

from __future__ import annotations

from typing import Any

import pytest

from mergefront.adapters.checkpoints.configurations import compare_configurations

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "torch_dtype": "float16", "transformers_version": "4.40.0", "eos_token_id": 2,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_attention_heads": 4, "sliding_window": 8},
    "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_attention_heads", 8), ("num_key_value_heads", 4), ("model_type", "mistral"), ("num_hidden_layers", 3),
        ("architectures", ["LlamaForSequenceClassification"]),
    ],
)  # fmt: skip
def test_what_cannot_be_one_model_is_refused(key: str, value: object) -> None:
    found = compare_configurations(LLAMA, {**LLAMA, key: value})
    assert found.refused.pop(key) == f"base says {LLAMA[key]!r}, expert says {value!r}"
    assert found.refused.keys() <= {"head_dim"}  # follows from the number of heads


@pytest.mark.parametrize(("key", "value"), [("rms_norm_eps", 1e-5), ("hidden_act", "gelu"), ("sliding_window", 64)])
def test_what_changes_the_numbers_is_reported(key: str, value: object) -> None:
    found = compare_configurations(LLAMA, {**LLAMA, key: value})
    assert not found.refused and key in {**found.reported, **found.unknown}


def test_a_key_that_nobody_knows_is_a_note() -> None:
    found = compare_configurations({**LLAMA, "muons": 1}, {**LLAMA, "muons": 2})
    assert not found.refused and not found.reported and list(found.unknown) == ["muons"]


def test_how_a_model_was_saved_and_trained_says_nothing() -> None:
    other = {**LLAMA, "dtype": "bfloat16", "transformers_version": "5.0", "eos_token_id": [2, 3], "use_cache": False,
             "attention_dropout": 0.1, "initializer_range": 1.0, "_name_or_path": "elsewhere"}  # fmt: skip
    assert compare_configurations(LLAMA, other) == compare_configurations(LLAMA, LLAMA)


def test_a_model_without_its_head_is_the_same_model() -> None:
    headless = {**LLAMA, "architectures": ["LlamaModel"]}
    assert not compare_configurations(headless, LLAMA).refused


def test_rotary_settings_are_compared_in_old_and_new_form() -> None:
    new = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    for theta, differs in ((10000.0, False), (500000.0, True)):
        written = {**new, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
        found = compare_configurations(LLAMA, written)
        assert list(found.reported) == (["rope_parameters.rope_theta"] if differs else [])
    scaled = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert "rope_parameters.factor" in compare_configurations(LLAMA, scaled).reported
    assert not compare_configurations(LLAMA, scaled, ["rope_scaling"]).reported


def test_a_default_that_one_side_writes_and_the_other_leaves_out_is_no_difference() -> None:
    pytest.importorskip("transformers")
    left_out = {key: value for key, value in LLAMA.items() if key not in ("rms_norm_eps", "rope_theta")}
    written = {**LLAMA, "head_dim": 8, "attention_bias": False, "hidden_act": "silu"}
    assert compare_configurations(left_out, written) == compare_configurations(LLAMA, LLAMA)
    assert "head_dim" in compare_configurations(LLAMA, {**written, "head_dim": 16}).refused


def test_sections_are_compared_by_their_paths() -> None:
    text = {**GEMMA["text_config"], "num_attention_heads": 8}
    found = compare_configurations(GEMMA, {**GEMMA, "text_config": text})
    assert list(found.refused) == ["text_config.num_attention_heads"]


def test_what_another_key_switches_off_is_no_difference() -> None:
    pytest.importorskip("transformers")
    qwen = {**LLAMA, "model_type": "qwen2", "use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1}
    other = {**qwen, "sliding_window": None, "max_window_layers": 2}
    assert compare_configurations(qwen, other) == compare_configurations(qwen, qwen)
    on = [{**config, "use_sliding_window": True} for config in (qwen, {**qwen, "sliding_window": 32})]
    assert "sliding_window" in compare_configurations(*on).reported


@pytest.mark.parametrize("allow", ["num_attention_heads", "text_config.num_attention_heads", "text_config", "*"])
def test_what_the_user_allows_is_said_no_more(allow: str) -> None:
    other = {**GEMMA, "text_config": {**GEMMA["text_config"], "num_attention_heads": 8}}
    assert not compare_configurations(GEMMA, other, [allow]).refused
    assert compare_configurations(GEMMA, other, ["attention_heads"]).refused


def test_a_strangers_configuration_is_compared_without_building_what_it_asks_for() -> None:
    nested: dict[str, Any] = {}
    for _ in range(500):
        nested = {"section": nested}
    hostile = {**LLAMA, "num_hidden_layers": 10**15, "model_type": "qwen2", "nested": nested}
    found = compare_configurations(LLAMA, hostile)
    assert {"num_hidden_layers", "model_type"} <= found.refused.keys() and found.unknown


def test_slices_may_differ_in_depth_and_in_nothing_else() -> None:
    deep = {**LLAMA, "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    shallow = {**LLAMA, "layer_types": ["full_attention"] * 2}
    assert not compare_configurations(shallow, deep, sliced=True).refused
    assert set(compare_configurations(shallow, deep).refused) == {"num_hidden_layers", "layer_types"}
    assert compare_configurations(shallow, {**deep, "num_attention_heads": 8}, sliced=True).refused
