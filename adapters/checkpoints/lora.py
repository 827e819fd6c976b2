"""PEFT LoRA folders as task vectors, as peft merges them.

    dW = scaling * B @ A             per matrix, embedding or convolution
    db = scaling * (bias of B)       with ``lora_bias``
    W  = what the adapter saved      biases, ``modules_to_save``, resized embeddings

Scaling is alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with the rank and alpha that
``rank_pattern`` and ``alpha_pattern`` give the module, as peft computes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader
from mergefront.adapters.checkpoints.lora_settings import TRAINING_TENSORS, LoraSettings, lora_settings
from mergefront.adapters.checkpoints.names import HEADS, expert_names
from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.(?!(?:weight|bias)$)[^.]+)?"
    r"(?:\.(?P<part>weight|bias))?$"
)
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.)")
_CONV1D = {
    "gpt2": "c_attn|q_attn|c_proj|c_fc",
    "decision_transformer": "c_attn|q_attn|c_proj|c_fc",
    "imagegpt": "c_attn|q_attn|c_proj|c_fc",
    "openai-gpt": "c_attn|c_proj|c_fc",
}
"""Layers that transformers stores as in x out (its Conv1D), by model type: peft goes by the layer's class."""


@dataclass(frozen=True)
class LoraModule:
    """One adapted matrix: the checkpoint's names of A and B, and the scaling.

    ``shape`` is that of B @ A (out x in; of a convolution, in times the kernel's size), ``stored`` that of the base's
    tensor. ``transposed`` says that the base stores the matrix as in x out (embeddings, Conv1D layers).
    """

    target: str
    a: str
    b: str
    rank: int
    shape: tuple[int, int]
    stored: tuple[int, ...]
    scaling: float
    transposed: bool

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix that the base stores as out x in."""
        return self.stored == self.shape and not self.transposed


@dataclass(frozen=True)
class LoraBias:
    """The adapter's name of a bias of B (n), and its scaling."""

    key: str
    scaling: float


@dataclass(frozen=True)
class LoraContents:
    """What an adapter changes, by base tensor name.

    ``whole`` has the adapter's names of tensors that take the base's place; a matrix may be there and in ``modules``,
    where the difference is added to what takes the base's place.
    """

    modules: Mapping[str, LoraModule]
    biases: Mapping[str, LoraBias]
    whole: Mapping[str, str]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the tensors that change."""
        return tuple(dict.fromkeys((*self.modules, *self.biases, *self.whole)))

    @property
    def beyond_matrices(self) -> str | None:
        """A tensor that changes otherwise than by factors, or None."""
        return next(iter((*self.biases, *self.whole)), None)


def read_lora(header: CheckpointHeader, base: CheckpointHeader | None = None) -> LoraContents:
    """What the adapter changes of ``base``, whose names and kinds of layer decide; without one, as the adapter says.

    Raises ``UserError`` for a half pair, and for factors that do not fit together.
    """
    settings = lora_settings(header.path, header.config)
    factors: dict[tuple[str, bool], dict[str, str]] = {}
    saved: dict[str, str] = {}
    for key in header.tensors:
        name = key.removeprefix(_PREFIX)
        found = _FACTOR.match(name)
        if found is not None:
            part = "bias" if found["part"] == "bias" else found["side"]
            factors.setdefault((found["module"], bool(found["embedding"])), {})[part] = key
        elif ".lora_" not in name:
            saved[name] = key
        elif not any(f".{tensor}" in name for tensor in TRAINING_TENSORS):
            raise UserError(f"{header.path}: tensor {key!r} belongs to no plain LoRA")
    whole = {name: key for name, key in saved.items() if not _SAVED.search(name) and ".original_module." not in name}
    for name, key in saved.items():
        if _SAVED.search(name):  # beside X.weight, peft may have saved X.modules_to_save.weight once more
            whole.setdefault(_SAVED.sub("", name), key)
    names = [f"{module}.{part}" for module, _ in factors for part in ("weight", "bias")] + list(whole)
    renamed = {} if base is None else {theirs: ours for ours, theirs in expert_names(base.tensors, names).items()}
    modules, biases = {}, {}
    for (module, embedding), parts in factors.items():
        if not parts.keys() >= {"A", "B"}:
            raise UserError(f"{header.path}: module {module!r} has only one of lora_A and lora_B")
        made = _module(header, settings, module, embedding, parts["A"], parts["B"])
        made = replace(made, target=renamed.get(made.target, made.target))
        if not embedding:
            made = replace(made, transposed=_is_transposed(made, base, settings))
        modules[made.target] = made
        if "bias" in parts:
            bias = f"{module}.bias"
            biases[renamed.get(bias, bias)] = LoraBias(parts["bias"], made.scaling)
    whole = {renamed.get(name, name): key for name, key in whole.items()}
    if base is not None and base.tied:
        # One that is saved with its embedding is the same tensor (``compare_headers`` sees to it).
        whole = {name: key for name, key in whole.items() if name in base.tensors or not name.endswith(HEADS)}
    return LoraContents(modules, biases, whole)


def _module(
    header: CheckpointHeader, settings: LoraSettings, module: str, embedding: bool, a: str, b: str
) -> LoraModule:
    shape_a, shape_b = header.tensors[a].shape, header.tensors[b].shape
    if min(len(shape_a), len(shape_b)) < 2 or set(shape_b[2:]) > {1}:
        raise UserError(f"{header.path}: {a} {list(shape_a)} and {b} {list(shape_b)} are no factors of a matrix")
    if shape_a[0] != shape_b[1]:
        raise UserError(f"{header.path}: {a} {list(shape_a)} and {b} {list(shape_b)} do not share a rank")
    declared = int(_pattern(settings.rank_pattern, module, settings.r))
    if declared != shape_a[0]:
        raise UserError(f"{header.path}: {a} has rank {shape_a[0]}, adapter_config.json says {declared}")
    alpha = float(_pattern(settings.alpha_pattern, module, settings.alpha))
    scaling = alpha / (math.sqrt(declared) if settings.rslora else declared)
    shape, stored = (shape_b[0], math.prod(shape_a[1:])), (shape_b[0], *shape_a[1:])
    return LoraModule(f"{module}.weight", a, b, declared, shape, stored, scaling, embedding)


def _is_transposed(module: LoraModule, base: CheckpointHeader | None, settings: LoraSettings) -> bool:
    """Whether the base stores a layer's matrix as in x out."""
    if base is None or module.target not in base.tensors:
        return settings.fan_in_fan_out
    stored = base.tensors[module.target].shape
    if module.stored != module.stored[::-1] or len(stored) != 2:
        return stored == module.shape[::-1] and stored != module.shape
    if "model_type" not in base.config:
        return settings.fan_in_fan_out
    layers = _CONV1D.get(base.config["model_type"])
    return layers is not None and re.search(rf"(^|\.)({layers})\.weight$", module.target) is not None


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's name, as peft matches."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class LoraTaskVector:
    """A LoRA folder as a task vector of ``base`` that is computed per tensor when asked for."""

    def __init__(self, checkpoint: Checkpoint, base: CheckpointHeader | None = None) -> None:
        self.checkpoint = checkpoint
        self.contents = read_lora(checkpoint.header, base)

    def changed(self) -> set[str]:
        """Names of the base tensors that this LoRA changes."""
        return set(self.contents.targets)

    def delta(self, name: str) -> torch.Tensor | None:
        """The difference that is added to a tensor, in float32 and of the tensor's shape; None where there is none."""
        if (bias := self.contents.biases.get(name)) is not None:
            return self.checkpoint[bias.key].float() * bias.scaling
        module = self.contents.modules.get(name)
        if module is None:
            return None
        a, b = self.factors(module)
        product = (b @ a) * module.scaling
        return product.T.contiguous() if module.transposed else product.view(module.stored)

    def factors(self, module: LoraModule) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r x in) and B (out x r) of one module in float32."""
        return self.checkpoint[module.a].float().flatten(1), self.checkpoint[module.b].float().flatten(1)

    def replacement(self, name: str) -> torch.Tensor | None:
        """A whole tensor that the adapter brings along (a bias, a module saved whole), else None."""
        key = self.contents.whole.get(name)
        return None if key is None else self.checkpoint[key]

    def on(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """The base's tensor of a name with this LoRA merged into it, in float32 where a difference is added."""
        replacement, delta = self.replacement(name), self.delta(name)
        stored = stored if replacement is None else replacement
        return stored if delta is None else stored.float() + delta
