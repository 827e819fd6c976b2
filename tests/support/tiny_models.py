"""Tiny random models of many architectures, made in milliseconds by transformers' own classes.

``TINY_MODELS`` has a row per architecture: what its configuration needs beside the sizes that all share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 192
"""Rows of an embedding: more than the tests' tokenizer has tokens, as padded vocabularies do."""
IMAGE, VIDEO, VISION_START, VISION_END, AUDIO = 184, 185, 186, 187, 188
"""Tokens that no text of the tests has."""

CAUSAL = "AutoModelForCausalLM"
IMAGE_TEXT = "AutoModelForImageTextToText"
SEQ2SEQ = "AutoModelForSeq2SeqLM"

SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "d_model": 16, "n_embd": 16, "intermediate_size": 24, "ffn_dim": 24,
    "d_ff": 24, "n_inner": 24, "num_hidden_layers": 3, "n_layer": 3, "num_layers": 3, "n_layers": 3,
    "num_attention_heads": 4, "n_head": 4, "num_heads": 4, "n_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_layers": 2, "encoder_layers": 3, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "decoder_ffn_dim": 24, "encoder_ffn_dim": 24, "n_group": 1, "topk_group": 1, "sliding_window": 16,
    "first_k_dense_replace": 1, "rotary_dim": 4, "embedding_size": 16, "word_embed_proj_dim": 16,
}  # fmt: skip
"""Small sizes by every name that configurations have for them; a model takes those that it knows."""


@dataclass(frozen=True)
class TinyModel:
    """One architecture: its ``model_type``, the auto class that loads it, and settings beside ``SIZES``."""

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    auto: str = CAUSAL

    def configuration(self, **settings: Any) -> Any:
        """A configuration with small sizes."""
        from transformers import CONFIG_MAPPING

        of_kind = CONFIG_MAPPING[self.model_type]
        usual = of_kind()
        sizes = {name: value for name, value in SIZES.items() if getattr(usual, name, None) is not None}
        made = {**sizes, "pad_token_id": 0, **self.settings, **settings}
        return of_kind(**{name: value for name, value in made.items() if value is not ...})

    def make(self, seed: int = 0, **settings: Any) -> Any:
        """A random model whose parameters, norms and biases too, are all away from their usual start."""
        import torch
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kind = getattr(transformers, self.auto)
            make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
            model = make(self.configuration(**settings)).eval()
            move(model, seed)
        return model


def move(model: Any, seed: int, by: float = 0.05) -> None:
    """Change every parameter of a model at random, as training does."""
    import torch

    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


_LATENT_ATTENTION = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "head_dim": 4,
    "num_key_value_heads": 4,
}  # fmt: skip
_LINEAR_ATTENTION = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_THREE_AXES = {**_TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}}
_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_QWEN_VISION = {"depth": 2, "hidden_size": 16, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2}
_QWEN_3_VISION = {**_QWEN_VISION, "out_hidden_size": 16, "intermediate_size": 24, "num_position_embeddings": 16}
_QWEN_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip


def _causal(model_type: str, **settings: Any) -> TinyModel:
    return TinyModel(model_type, settings)


def _image_text(model_type: str, text: str | Mapping[str, Any], vision: str, **settings: Any) -> TinyModel:
    language = {**_TEXT, "model_type": text} if isinstance(text, str) else text
    towers = {"text_config": language, "vision_config": {**_VISION, **({"model_type": vision} if vision else {})}}
    return TinyModel(model_type, {**towers, **settings}, IMAGE_TEXT)


def _qwen_image_text(model_type: str, text: Mapping[str, Any], vision: Mapping[str, Any]) -> TinyModel:
    return TinyModel(model_type, {"text_config": text, "vision_config": vision, **_QWEN_TOKENS}, IMAGE_TEXT)


_ROWS = (
    *map(_causal, (
        "afmoe", "apertus", "arcee", "bloom", "codegen", "cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "exaone4",
        "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode",
        "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoeshared", "lfm2", "llama", "mamba", "minimax",
        "minimax_m2", "ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "nanochat", "olmo", "olmo2",
        "olmo3", "olmo_hybrid", "olmoe", "opt", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
        "recurrent_gemma", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "vaultgemma", "xglm",
    )),
    _causal("bamba", **_MAMBA, attn_layer_indices=[1]),
    _causal("deepseek_v3", **_LATENT_ATTENTION),
    _causal("falcon", head_dim=...),
    _causal("falcon_h1", **_MAMBA, mamba_d_ssm=32),
    _causal(
        "gemma3n_text", num_hidden_layers=4, num_kv_shared_layers=2, intermediate_size=24, altup_num_inputs=2,
        layer_types=["sliding_attention", "full_attention"] * 2, activation_sparsity_pattern=[0.0] * 4,
        vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8, laurel_rank=4,
    ),
    _causal("glm4_moe_lite", **_LATENT_ATTENTION),
    _causal("gpt_neo", attention_types=[[["global", "local", "global"], 1]], window_size=8),
    _causal("granitemoehybrid", **_MAMBA, layer_types=["mamba", "attention", "mamba"], shared_intermediate_size=16),
    _causal("hunyuan_v1_dense", head_dim=4),
    _causal(
        "jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    _causal("lfm2_moe", layer_types=["conv", "full_attention", "conv"], num_dense_layers=1),
    _causal("mamba2", num_heads=4, head_dim=8, state_size=8, n_groups=1, expand=2),
    _causal("minicpm3", **_LATENT_ATTENTION),
    _causal("ministral", head_dim=4, layer_types=None),
    _causal("nemotron", num_key_value_heads=2),
    _causal("qwen3_5_moe_text", **_LINEAR_ATTENTION),
    _causal("qwen3_5_text", **_LINEAR_ATTENTION),
    _causal("qwen3_next", **_LINEAR_ATTENTION),
    _causal(
        "zamba2", layers_block_type=["mamba", "hybrid", "mamba"], hybrid_layer_ids=[1], mamba_d_state=8,
        mamba_headdim=8, n_mamba_heads=4, mamba_ngroups=1,
    ),
    _image_text("aya_vision", "cohere2", "siglip_vision_model", image_token_index=IMAGE),
    _image_text("gemma3", _TEXT, "siglip_vision_model", image_token_index=IMAGE, mm_tokens_per_image=4),
    _image_text("idefics3", "llama", "", image_token_id=IMAGE, scale_factor=2),
    _image_text("llava", "llama", "clip_vision_model", image_token_index=IMAGE),
    _image_text("llava_next", "mistral", "clip_vision_model", image_token_index=IMAGE),
    _image_text("mistral3", "mistral", "pixtral", image_token_index=IMAGE),
    _image_text(
        "paligemma", "gemma", "siglip_vision_model", projection_dim=16, hidden_size=16, image_token_index=IMAGE
    ),
    _image_text("smolvlm", "llama", "", image_token_id=IMAGE, scale_factor=2),
    _qwen_image_text("qwen2_vl", _THREE_AXES, {**_QWEN_VISION, "embed_dim": 16, "in_channels": 3, "mlp_ratio": 2}),
    _qwen_image_text(
        "qwen2_5_vl", _THREE_AXES,
        {**_QWEN_VISION, "out_hidden_size": 16, "intermediate_size": 24, "fullatt_block_indexes": [1]},
    ),
    _qwen_image_text("qwen3_vl", _THREE_AXES, {**_QWEN_3_VISION, "deepstack_visual_indexes": [0]}),
    _qwen_image_text(
        "qwen3_vl_moe", {**_THREE_AXES, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
        {**_QWEN_3_VISION, "deepstack_visual_indexes": [0]},
    ),
    _qwen_image_text("qwen3_5", {**_TEXT, **_LINEAR_ATTENTION}, _QWEN_3_VISION),
    *(TinyModel(name, {}, SEQ2SEQ) for name in ("bart", "blenderbot", "m2m_100", "mbart", "pegasus")),
    TinyModel("marian", {"decoder_start_token_id": 0, "forced_eos_token_id": 2}, SEQ2SEQ),
    *(
        TinyModel(name, {"d_kv": 4, "num_decoder_layers": 2, "decoder_start_token_id": 0}, SEQ2SEQ)
        for name in ("mt5", "t5", "umt5")
    ),
    *(TinyModel(name, {}, "AutoModelForMaskedLM") for name in ("bert", "deberta-v2", "modernbert", "roberta")),
    TinyModel(
        "distilbert", {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 4}, "AutoModelForSequenceClassification"
    ),
    TinyModel("vit", {"image_size": 28, "patch_size": 14}, "AutoModelForImageClassification"),
    TinyModel(
        "clip",
        {
            "text_config": {**_TEXT, "projection_dim": 16}, "vision_config": {**_VISION, "projection_dim": 16},
            "projection_dim": 16,
        },
        "AutoModel",
    ),
    TinyModel(
        "whisper", {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 64},
        "AutoModelForSpeechSeq2Seq",
    ),
)  # fmt: skip
THINKER = TinyModel(
    "qwen2_5_omni_thinker",
    {
        "text_config": {**_THREE_AXES, "model_type": "qwen2_5_omni_text"},
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 16, "intermediate_size": 24, "fullatt_block_indexes": [1]},
        "audio_config": {
            "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 24, "num_mel_bins": 8,
            "output_dim": 16, "max_source_positions": 20, "n_window": 4,
        },
        "image_token_index": IMAGE, "video_token_index": VIDEO, "audio_token_index": AUDIO, "pad_token_id": ...,
    },
    "Qwen2_5OmniThinkerForConditionalGeneration",
)  # fmt: skip
"""A model that sees, hears and reads."""
TINY_MODELS: Mapping[str, TinyModel] = {row.model_type: row for row in _ROWS}
"""By model type."""
