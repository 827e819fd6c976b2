"""What ``adapter_config.json`` says of a LoRA: kinds that are merged as peft 0.21 merges them, and refused ones.

A key that is in none of the tables and says anything (is not null, false or empty) is refused by its name, since a
kind that is not known must not be merged as a plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError

_MERGE_FIRST = "merge it into its base with peft (merge_and_unload, then save_pretrained) and give that model"
_CONVERT = (
    "save it again with model.save_pretrained(folder, path_initial_model_for_weight_conversion=...), which makes it a "
    "plain LoRA of the base"
)

READ = frozenset(
    {
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "peft_type",
        "init_lora_weights",
    }
)  # fmt: skip
"""Keys whose values a merge depends on. ``fan_in_fan_out`` counts only where the base does not tell a layer's kind."""
SEEN_IN_TENSORS = frozenset(
    {
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias",
        "lora_bias", "target_parameters", "ensure_weight_tying", "target_modules_to_tie", "modules_to_tie",
    }
)  # fmt: skip
"""Keys that say which tensors an adapter has: the tensors are there to be read."""
WITHOUT_EFFECT = frozenset(
    {
        # how it was trained or started
        "lora_dropout", "inference_mode", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        "velora_config", "monteclora_config", "runtime_config", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr",
        # what it belongs to, and defaults of kinds that other keys switch on
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "parent_library",
        "megatron_core", "qalora_group_size",
    }
)  # fmt: skip
"""Keys on which peft's merge does not depend (VeLoRA and Monteclora change training and merge as plain LoRAs)."""
REFUSED: Mapping[str, str] = {
    "use_dora": f"DoRA rescales the rows of the merged weight, which is no difference to add; {_MERGE_FIRST}",
    "use_qalora": f"QALoRA belongs to quantised layers; {_MERGE_FIRST}",
    "kasa_config": f"KaSA also cuts the base's smallest singular values off; {_MERGE_FIRST}",
    "use_bdlora": f"BD-LoRA stores block-diagonal factors; {_MERGE_FIRST}",
    "alora_invocation_tokens": "an activated LoRA acts only after its invocation tokens, which no merged weight can do",
    "arrow_config": "Arrow routes every token among several LoRAs, which no merged weight can do; give those LoRAs",
    "trainable_token_indices": f"single rows of the embedding were trained; {_MERGE_FIRST}",
    "layer_replication": f"it belongs to a base with repeated layers; {_MERGE_FIRST}",
    "megatron_config": f"it belongs to Megatron's parallel layers; {_MERGE_FIRST}",
}
"""Keys that make an adapter something else than differences that can be added to the base."""
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_RESIDUAL_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
TRAINING_TENSORS = ("lora_velora_embed", "lora_monteclora_sampler")
"""Tensors that only training reads."""


@dataclass(frozen=True)
class LoraSettings:
    """What ``adapter_config.json`` says about scaling and layout."""

    r: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    fan_in_fan_out: bool = False
    parameters: tuple[str, ...] = ()


def lora_settings(path: Path, config: Mapping[str, Any]) -> LoraSettings:
    """The settings of the LoRA in a folder; raises ``UserError`` for a kind that is not merged as peft merges it."""
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{path}: a PEFT adapter of type {kind}; only LORA can be merged")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise UserError(f"{path}: {key} is set: {reason}")
    start = config.get("init_lora_weights", True)
    name = start.lower() if isinstance(start, str) else ""
    if name.startswith(_RESIDUAL_STARTS):
        raise UserError(
            f"{path}: init_lora_weights is {start!r}: it was started from the base's weights and belongs to what is "
            f"left of them; {_CONVERT}"
        )
    if name not in ("", "true", "false", *_PLAIN_STARTS):
        raise UserError(f"{path}: init_lora_weights is {start!r}, a start that this version does not know")
    known = READ | SEEN_IN_TENSORS | WITHOUT_EFFECT | REFUSED.keys()
    unknown = [key for key, value in config.items() if value and key not in known]
    if unknown:
        raise UserError(
            f"{path / 'adapter_config.json'}: {unknown[0]} is set to {config[unknown[0]]!r}, a kind of LoRA that this "
            f"version does not know; {_MERGE_FIRST}"
        )
    try:
        return LoraSettings(
            r=int(config.get("r", 8)),
            alpha=float(config.get("lora_alpha", 8)),
            rank_pattern=dict(config.get("rank_pattern") or {}),
            alpha_pattern=dict(config.get("alpha_pattern") or {}),
            rslora=bool(config.get("use_rslora", False)),
            fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
            parameters=tuple(config.get("target_parameters") or ()),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{path / 'adapter_config.json'}: {error}") from None
