"""A tiny model of images and text with a processor of its own."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

CHAT = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}BOT:{% endif %}"
)
TEXT_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION_SIZES = {**TEXT_SIZES, "image_size": 16, "patch_size": 8, "projection_dim": 32}


def make_llava(tokenizer: Any, chat_template: str | None) -> tuple[Any, Any]:
    """A new tiny LLaVA, whose answers depend on what it sees, and its processor (needs Pillow)."""
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = deepcopy(tokenizer)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.pad_token = words.eos_token
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 16, "width": 16}, do_center_crop=False),
        words,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    text = {**TEXT_SIZES, "vocab_size": len(words), "max_position_embeddings": 128, "initializer_range": 0.3}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION_SIZES),
        text_config=transformers.LlamaConfig(**text, bos_token_id=None, eos_token_id=0, pad_token_id=None),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlavaForConditionalGeneration(config).eval(), processor
