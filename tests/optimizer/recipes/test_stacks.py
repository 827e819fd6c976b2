"""Tensors find their stack by name, in checkpoints of many families; a wrong one would be moved by another's blocks."""

from __future__ import annotations

import pytest

from mergefront.optimizer.recipes.grouping import stack_of_tensor
from mergefront.optimizer.recipes.stacks import NAMES, stacks_of


@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (["model.layers."], ["language"]),
        (["model.decoder.layers."], ["language"]),  # OPT
        (["bert.encoder.layer."], ["language"]),
        (["vision_model.encoder.layers.", "text_model.encoder.layers."], ["vision", "language"]),
        (["encoder.block.", "decoder.block."], ["encoder", "decoder"]),
        (["encoder.bert.encoder.layer.", "decoder.bert.encoder.layer."], ["encoder", "decoder"]),
        # Florence-2: an encoder-decoder beside a tower
        (
            ["language_model.model.encoder.layers.", "language_model.model.decoder.layers.", "vision_tower.blocks."],
            ["encoder", "decoder", "vision"],
        ),
        # Granite speech: an encoder of sounds that is not called so
        (
            ["encoder.layers.", "language_model.model.layers.", "projector.qformer.encoder.layer."],
            ["encoder", "language", "encoder"],
        ),
        (["audio_tower.layers.", "visual.blocks.", "model.layers."], ["audio", "vision", "language"]),
    ],
)
def test_stacks_are_called_what_users_call_them(prefixes: list[str], names: list[str]) -> None:
    assert stacks_of(prefixes) == dict(zip(prefixes, names, strict=True))


@pytest.mark.parametrize(
    ("tensor", "known", "stack"),
    [
        ("model.visual.merger.mlp.0.weight", {"language", "vision"}, "vision"),
        ("visual.blocks.1.attn.qkv.weight", {"language", "vision"}, "vision"),
        ("model.language_model.embed_tokens.weight", {"language", "vision"}, "language"),
        ("model.image_newline", {"language", "vision"}, "vision"),
        ("multi_modal_projector.linear_1.weight", {"language", "vision"}, "vision"),
        ("multi_modal_projector.linear_1.weight", {"language", "audio"}, "audio"),
        ("lm_head.weight", {"language", "vision"}, "language"),
        ("vision_model.encoder.layers.0.weight", {"vision"}, "vision"),
        ("classifier.weight", {"vision"}, "vision"),
        ("shared.weight", {"encoder", "decoder"}, "encoder"),
        ("lm_head.weight", {"encoder", "decoder"}, "decoder"),
        ("model.decoder.embed_tokens.weight", {"encoder", "decoder"}, "decoder"),
        ("encoder.layers.3.conv.weight", {"language", "encoder"}, "encoder"),
        ("language_model.model.layers.3.mlp.weight", {"language", "encoder"}, "language"),
    ],
)
def test_a_tensor_is_of_a_stack_wherever_it_lies(tensor: str, known: set[str], stack: str) -> None:
    """Whatever order the stacks are known in: databases keep none."""
    for order in (NAMES, NAMES[::-1]):
        assert stack_of_tensor(tensor, [name for name in order if name in known]) == stack
