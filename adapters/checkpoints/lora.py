"""PEFT LoRA folders as task vectors: dW = scaling * B @ A, per module.

Scaling is alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with the rank and alpha that
``rank_pattern`` and ``alpha_pattern`` give the module, as peft computes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, LoraSettings, lora_settings
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.[^.]+?)??(?:\.weight)?$")


@dataclass(frozen=True)
class LoraModule:
    """One adapted matrix: the checkpoint's names of A (r x in) and B (out x r), and the scaling.

    ``transposed`` says that the base stores the matrix as in x out (embeddings, Conv1D layers).
    """

    target: str
    a: str
    b: str
    rank: int
    shape: tuple[int, int]
    scaling: float
    transposed: bool


def lora_modules(header: CheckpointHeader) -> tuple[dict[str, LoraModule], dict[str, str]]:
    """The adapted matrices by base tensor name, and whole tensors (biases, modules_to_save) likewise.

    Raises ``UserError`` for a half pair, for factors that do not fit together and for
    convolutions.
    """
    settings = lora_settings(header)
    factors: dict[tuple[str, bool], dict[str, str]] = {}
    whole: dict[str, str] = {}
    for key in header.tensors:
        name = key.removeprefix(_PREFIX)
        found = _FACTOR.match(name)
        if found is None:
            if ".lora_" in name:
                raise UserError(f"{header.path}: tensor {key!r} belongs to no plain LoRA")
            whole[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = key
            continue
        factors.setdefault((found["module"], bool(found["embedding"])), {})[found["side"]] = key
    modules = {}
    for (module, embedding), sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise UserError(f"{header.path}: module {module!r} has only one of lora_A and lora_B")
        made = _module(header, settings, module, embedding, sides["A"], sides["B"])
        modules[made.target] = made
    return modules, whole


def _module(
    header: CheckpointHeader, settings: LoraSettings, module: str, embedding: bool, a: str, b: str
) -> LoraModule:
    shape_a, shape_b = header.tensors[a].shape, header.tensors[b].shape
    if len(shape_a) != 2 or len(shape_b) != 2:
        raise UserError(f"{header.path}: {a} has shape {list(shape_a)}; only matrices can be merged, not convolutions")
    if shape_a[0] != shape_b[1]:
        raise UserError(f"{header.path}: {a} {list(shape_a)} and {b} {list(shape_b)} do not share a rank")
    declared = int(_pattern(settings.rank_pattern, module, settings.r))
    if declared != shape_a[0]:
        raise UserError(f"{header.path}: {a} has rank {shape_a[0]}, adapter_config.json says {declared}")
    alpha = float(_pattern(settings.alpha_pattern, module, settings.alpha))
    scaling = alpha / (math.sqrt(declared) if settings.rslora else declared)
    transposed = embedding or settings.fan_in_fan_out
    return LoraModule(f"{module}.weight", a, b, declared, (shape_b[0], shape_a[1]), scaling, transposed)


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's name, as peft matches."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class LoraTaskVector:
    """A LoRA folder as a task vector that is computed per tensor when asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.modules, self.whole = lora_modules(checkpoint.header)

    def changed(self) -> set[str]:
        """Names of the base tensors that this LoRA changes."""
        return {*self.modules, *self.whole}

    def delta(self, name: str) -> torch.Tensor | None:
        """The task vector of an adapted matrix in float32 (the shape of the base's tensor), else None."""
        module = self.modules.get(name)
        if module is None:
            return None
        product = (self.checkpoint[module.b].float() @ self.checkpoint[module.a].float()) * module.scaling
        return product.T.contiguous() if module.transposed else product

    def replacement(self, name: str) -> torch.Tensor | None:
        """A whole tensor that the adapter brings along (a bias, a module saved whole), else None."""
        key = self.whole.get(name)
        return None if key is None else self.checkpoint[key]
