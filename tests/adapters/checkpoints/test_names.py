"""Which stored tensors no answer of a model depends on: a merge must not be refused, or changed, because of them."""

from __future__ import annotations

import pytest

from mergefront.adapters.checkpoints.names import is_prediction_layer, is_unread


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", [4]),
        ("h.3.attn.bias", [1, 1, 64, 64]),
        ("transformer.h.3.attn.masked_bias", []),
        ("gpt_neox.layers.0.attention.bias", [1, 1, 32, 32]),
        ("bert.embeddings.position_ids", [1, 512]),
        ("position_ids", [1, 512]),
        ("encoder.bn.num_batches_tracked", []),
    ],
)
def test_buffers_that_models_compute_anew_are_known(name: str, shape: list[int]) -> None:
    assert is_unread(name, shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("h.3.attn.bias", [64]),
        ("h.3.attn.c_attn.bias", [192]),
        ("gpt_neox.layers.0.attention.dense.bias", [64]),
        ("relative_attention_bias.weight", [32, 4]),
        ("encoder.bn.running_mean", [4]),
        ("embeddings.position_embeddings.weight", [512, 8]),
    ],
)
def test_weights_that_only_sound_like_buffers_are_none(name: str, shape: list[int]) -> None:
    assert not is_unread(name, shape)


def test_layers_that_predict_further_tokens_are_told_from_layers_of_the_model() -> None:
    deepseek = {"num_hidden_layers": 61, "num_nextn_predict_layers": 1}
    assert is_prediction_layer("model.layers.61.eh_proj.weight", deepseek)
    assert not is_prediction_layer("model.layers.60.mlp.up_proj.weight", deepseek)
    assert not is_prediction_layer("model.layers.61.mlp.up_proj.weight", {"num_hidden_layers": 61})
    assert is_prediction_layer("mtp.layers.0.mlp.up_proj.weight", {})
