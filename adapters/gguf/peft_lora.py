"""A PEFT LoRA folder as matrices: ``adapter_config.json`` and ``adapter_model.safetensors``, no torch.

The LoRA adds ``scale * B @ A`` to a linear layer, with ``scale = alpha / rank`` (``alpha / sqrt(rank)`` for
rsLoRA). Whatever a sum of such products cannot say is refused, by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.errors import UserError

Matrix = NDArray[np.float32]

_PREFIXES = ("base_model.model.", "base_model.")
_MOST_BYTES = 2**31


@dataclass(frozen=True)
class LoraModule:
    """One linear layer's share: ``alpha / rank * b @ a``, with ``a`` of ``rank x in`` and ``b`` of ``out x rank``."""

    a: Matrix
    b: Matrix
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class PeftLora:
    """``modules`` by the linear layer's name in the base model (``model.layers.0.self_attn.q_proj``)."""

    folder: Path
    modules: Mapping[str, LoraModule]
    config: Mapping[str, Any]


def read_peft_lora(folder: Path) -> PeftLora:
    """Read a LoRA; raises ``UserError`` for a missing or broken file and for what no plain LoRA is."""
    config = _config(folder)
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise UserError(f"{folder}: has no adapter_model.safetensors (LoRAs are read from safetensors only)")
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: is larger than {_MOST_BYTES:,} bytes; this is no LoRA")
    halves: dict[str, dict[str, Matrix]] = {}
    for name, tensor in read_safetensors(path).items():
        module, half = _module_and_half(name, path)
        halves.setdefault(module, {})[half] = tensor
    modules: dict[str, LoraModule] = {}
    for module, pair in sorted(halves.items()):
        if set(pair) != {"A", "B"}:
            raise UserError(f"{path}: {module} has lora_{next(iter(pair))} alone; both halves are needed")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.size:
            raise UserError(f"{path}: {module}: the shapes {a.shape} and {b.shape} are not those of a LoRA")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise UserError(f"{path}: {module} has NaN or infinite entries")
        modules[module] = LoraModule(a, b, _alpha(config, module, a.shape[0]))
    if not modules:
        raise UserError(f"{path}: holds no LoRA matrices")
    return PeftLora(folder, modules, config)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: has no adapter_config.json; this is no PEFT LoRA") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is not LORA")
    for key in ("use_dora", "lora_bias", "use_qalora", "fan_in_fan_out"):
        if config.get(key):
            raise UserError(f"{path}: {key} is set; only plain LoRAs add up, so this one cannot be used")
    if config.get("bias", "none") != "none" or config.get("modules_to_save"):
        raise UserError(f"{path}: it also changes biases or whole modules, which is more than a LoRA")
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise UserError(f"{path}: r is {config.get('r')!r}; it must be a whole number of at least 1")
    return config


def _alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The number that, divided by the rank, scales the module's product."""
    alpha = _pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", rank))
    expected = _pattern(config.get("rank_pattern") or {}, module, config["r"])
    if rank != expected:
        raise UserError(f"{module}: its matrices have rank {rank}, its configuration says {expected}")
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the end of the module's name from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _module_and_half(name: str, path: Path) -> tuple[str, str]:
    found = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
    if found is None:
        raise UserError(f"{path}: {name} is no matrix of a plain LoRA on a linear layer")
    module = found[1]
    for prefix in _PREFIXES:
        if module.startswith(prefix):
            module = module[len(prefix) :]
            break
    return module, found[2]


def read_safetensors(path: Path) -> dict[str, Matrix]:
    """Every tensor of a file in float32; bfloat16, which numpy lacks, is widened exactly."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return {name: _as_float32(entry, f"{path}: {name}") for name, entry in entries}


def _as_float32(entry: Mapping[str, Any], label: str) -> Matrix:
    data, shape = entry["data"], tuple(entry["shape"])
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
    if entry["dtype"] == "BF16":
        bits = np.frombuffer(data, dtype="<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(shape)
    if entry["dtype"] not in kinds:
        raise UserError(f"{label} is of type {entry['dtype']}; floating-point weights are needed")
    return np.frombuffer(data, dtype=kinds[entry["dtype"]]).astype(np.float32).reshape(shape)
