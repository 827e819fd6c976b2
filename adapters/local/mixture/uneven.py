"""The class of a mixture whose layers have different numbers of experts, as a file beside its weights.

No configuration of transformers can say such numbers, so the folder brings a class that reads them. It is loaded by
``from_pretrained(..., trust_remote_code=True)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergefront.adapters.local.mixture.layers import ExpertLayer

_FILE, _CLASS = "modeling_uneven_mixture.py", "UnevenMixture"
_KEY = "experts_by_layer"
_CODE = '''"""{name} with as many experts in each layer as "{key}" of config.json says."""

import torch
from transformers import {name}


class {cls}({name}):
    def __init__(self, config):
        super().__init__(config)
        for name, (tensors, count) in config.{key}.items():
            block = self.get_submodule(name)
            for path in tensors:
                part, _, own = path.rpartition(".")
                module = block.get_submodule(part)
                kept = getattr(module, own).detach()[:count].clone()
                setattr(module, own, torch.nn.Parameter(kept) if own in module._parameters else kept)
            for module in block.modules():
                if hasattr(module, "num_experts"):
                    module.num_experts = count
'''


def write_class(folder: Path, name: str, layers: Sequence[ExpertLayer]) -> None:
    """Add the class to a written model of transformers' class ``name``."""
    (folder / _FILE).write_text(_CODE.format(name=name, cls=_CLASS, key=_KEY), encoding="utf-8")
    counts = {layer.block: [layer.tensors, len(layer.experts.down_proj)] for layer in layers}
    auto = {"AutoModelForCausalLM": f"{_FILE.removesuffix('.py')}.{_CLASS}"}
    add_to_config(folder, {_KEY: counts, "auto_map": auto})


def add_to_config(folder: Path, keys: Mapping[str, Any]) -> None:
    """Set keys of a written model's config.json."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text(encoding="utf-8")), **keys}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
