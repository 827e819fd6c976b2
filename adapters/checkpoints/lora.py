"""PEFT LoRA folders as task vectors, as peft merges them.

    dW = scaling * B @ A             per matrix, embedding or convolution
    db = scaling * (bias of B)       with ``lora_bias``
    dW_e = scaling * B_e @ A_e       per expert e, of parameters that hold all experts (``target_parameters``)
    W  = what the adapter saved      biases, ``modules_to_save``, resized embeddings

Scaling is alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with the rank and alpha that
``rank_pattern`` and ``alpha_pattern`` give the module, as peft computes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader
from mergefront.adapters.checkpoints.live_names import LiveTensor
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
_EXPERTS_IN_BY_OUT = ("gpt_oss", "openai_privacy_filter")
"""Types of models that store all experts together as in x out. Elsewhere the shape tells, or nothing does."""
_EXPERT_PARTS = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
"""What checkpoints call the matrices of one expert that transformers 5 stacks (out of the first on top)."""


@dataclass(frozen=True)
class ExpertSlice:
    """One matrix of one expert in factors of all: A (experts * rank x in), B (out x rank * experts).

    Of ``experts`` 1, some rows of one matrix that a live model has and its checkpoint stores in pieces.
    """

    expert: int
    experts: int
    first_row: int
    rows: int


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
    part: ExpertSlice | None = None

    @property
    def is_linear(self) -> bool:
        """Whether it is a matrix that the base stores as out x in."""
        return self.stored == self.shape and not self.transposed


@dataclass(frozen=True)
class StackedExperts:
    """Factors of a tensor that holds all experts: experts x out x in, or experts x in x out if ``transposed``."""

    a: str
    b: str
    experts: int
    scaling: float
    transposed: bool


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
    stacked: Mapping[str, StackedExperts]

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the tensors that change."""
        return tuple(dict.fromkeys((*self.modules, *self.biases, *self.whole, *self.stacked)))

    @property
    def beyond_matrices(self) -> str | None:
        """A tensor that changes otherwise than by factors, or None."""
        return next(iter((*self.biases, *self.whole, *self.stacked)), None)


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
    names += [f"{module.replace('.base_layer', '')}.{part}" for module, _ in factors for part in _EXPERT_PARTS]
    targets = _Targets(base, names)
    modules: dict[str, LoraModule] = {}
    biases: dict[str, LoraBias] = {}
    stacked: dict[str, StackedExperts] = {}
    for (module, embedding), parts in factors.items():
        if not parts.keys() >= {"A", "B"}:
            raise UserError(f"{header.path}: module {module!r} has only one of lora_A and lora_B")
        experts = module.replace(".base_layer", "")
        if settings.parameters and experts.endswith(".experts"):
            found_parts = _experts(header, settings, base, targets, experts, parts["A"], parts["B"])
            modules |= {name: part for name, part in found_parts.items() if isinstance(part, LoraModule)}
            stacked |= {name: part for name, part in found_parts.items() if isinstance(part, StackedExperts)}
            continue
        made = _module(header, settings, module, embedding, parts["A"], parts["B"])
        pieces = targets.rows(made)
        made = replace(made, target=targets.stored(made.target))
        if not embedding:
            made = replace(made, transposed=_is_transposed(made, base, settings))
        modules |= pieces or {made.target: made}
        if "bias" in parts:
            biases[targets.stored(f"{module}.bias")] = LoraBias(parts["bias"], made.scaling)
    whole = {targets.stored(name): key for name, key in whole.items()}
    if base is not None and base.tied:
        # One that is saved with its embedding is the same tensor (``compare_headers`` sees to it).
        whole = {name: key for name, key in whole.items() if name in base.tensors or not name.endswith(HEADS)}
    return LoraContents(modules, biases, whole, stacked)


class _Targets:
    """What the base calls the tensors that an adapter names: by their structure, or where that finds none by what
    transformers makes of the base's tensors, since an adapter has the names of the live model."""

    def __init__(self, base: CheckpointHeader | None, names: Collection[str]) -> None:
        self._base = base
        self._names = names
        self._renamed = _theirs_to_ours({} if base is None else base.tensors, names)

    def stored(self, name: str) -> str:
        """The base's name; that of the live model, or the adapter's own, where the base stores no such tensor."""
        own = self._renamed.get(name, name)
        if self._is_found(own):
            return own
        live = self.live(name)
        return own if live is None else live.whole or self._live_names.get(name, name)

    def live(self, name: str) -> LiveTensor | None:
        """What the live model has under an adapter's name."""
        return None if self._base is None else self._base.live.get(self._live_names.get(name, name))

    def rows(self, module: LoraModule) -> dict[str, LoraModule]:
        """An adapted matrix as those of the tensors that the base stores its rows in; empty where it is one tensor."""
        if self._is_found(self._renamed.get(module.target, module.target)) or module.transposed:
            return {}
        live = self.live(module.target)
        if live is None or live.whole is not None or live.shape != module.stored:
            return {}
        return {
            name: replace(
                module, target=name, shape=(rows, module.shape[1]), stored=(rows, *module.stored[1:]),
                part=ExpertSlice(0, 1, first, rows),
            )
            for name, (first, rows) in (live.rows(module.shape[1]) or {}).items()
        }  # fmt: skip

    def _is_found(self, name: str) -> bool:
        """Whether there is no need to ask transformers."""
        base = self._base
        return base is None or name in base.tensors or (base.tied and name.endswith(HEADS))

    @cached_property
    def _live_names(self) -> dict[str, str]:
        return _theirs_to_ours({} if self._base is None else self._base.live, self._names)


def _theirs_to_ours(ours: Collection[str], theirs: Collection[str]) -> dict[str, str]:
    return {their: our for our, their in expert_names(ours, theirs).items()}


def _experts(
    header: CheckpointHeader,
    settings: LoraSettings,
    base: CheckpointHeader | None,
    targets: _Targets,
    module: str,
    a: str,
    b: str,
) -> Mapping[str, LoraModule | StackedExperts]:
    """What factors of a parameter of all experts change, whether the base stores the experts together or one by one.

    Which parameter it is, ``gate_up_proj`` or ``down_proj``, is told by the shapes, since no two of a model's agree.
    """
    (ranks, columns), (rows, _) = header.tensors[a].shape, header.tensors[b].shape
    if base is None:
        return {module: StackedExperts(a, b, 0, 0.0, False)}
    layer = module.removesuffix(".experts").rpartition(".")[0]
    wanted = [
        (f"{module}.{parameter}", spellings) for parameter, spellings in _EXPERT_PARTS.items()
        if any(f"{module}.{parameter}".endswith(target) for target in settings.parameters)
    ]  # fmt: skip

    def single(target: str, rank: int, scaling: float, part: ExpertSlice) -> LoraModule:
        shape = (part.rows, columns)
        return LoraModule(target, a, b, rank, shape, shape, scaling, False, part)

    def together(shape: tuple[int, ...], rank: int, scaling: float) -> StackedExperts | None:
        is_told = rows != columns or base.config.get("model_type") in _EXPERTS_IN_BY_OUT
        if not is_told or sorted(shape[1:]) != sorted((rows, columns)) or rank * shape[0] != ranks:
            return None
        return StackedExperts(a, b, shape[0], scaling, shape[1:] == (columns, rows))

    for name, spellings in wanted:
        rank, scaling = _rank_and_scaling(header, settings, name)
        stacked = together(base.tensors[name].shape, rank, scaling) if name in base.tensors else None
        if stacked is not None:
            return {name: stacked}
        for spelling in spellings:
            own = re.compile(rf"{re.escape(layer)}\.[^.]+\.experts\.(\d{{1,9}})\.({'|'.join(spelling)})\.weight")
            found = {n: match for n in base.tensors if (match := own.fullmatch(n)) is not None}
            height, experts = rows // len(spelling), len(found) // len(spelling)
            if not found or {base.tensors[n].shape for n in found} != {(height, columns)} or rank * experts != ranks:
                continue
            return {
                n: single(n, rank, scaling, ExpertSlice(int(m[1]), experts, height * spelling.index(m[2]), height))
                for n, m in found.items()
            }
    for name, _ in wanted:
        rank, scaling = _rank_and_scaling(header, settings, name)
        live = targets.live(name)
        stacked = None if live is None else together(live.shape, rank, scaling)
        if live is None or stacked is None:
            continue
        if live.whole is not None:
            return {live.whole: stacked}
        if not stacked.transposed and (pieces := live.rows(columns)):
            return {
                n: single(n, rank, scaling, ExpertSlice(first // rows, stacked.experts, first % rows, height))
                for n, (first, height) in pieces.items()
            }
    raise UserError(
        f"{header.path}: target_parameters: {a} {list(header.tensors[a].shape)} and {b} "
        f"{list(header.tensors[b].shape)} fit no experts that the base stores under {module}; merge it into its base "
        "with peft (merge_and_unload, then save_pretrained) and give that model"
    )


def _module(
    header: CheckpointHeader, settings: LoraSettings, module: str, embedding: bool, a: str, b: str
) -> LoraModule:
    shape_a, shape_b = header.tensors[a].shape, header.tensors[b].shape
    if min(len(shape_a), len(shape_b)) < 2 or set(shape_b[2:]) > {1}:
        raise UserError(f"{header.path}: {a} {list(shape_a)} and {b} {list(shape_b)} are no factors of a matrix")
    if shape_a[0] != shape_b[1]:
        raise UserError(f"{header.path}: {a} {list(shape_a)} and {b} {list(shape_b)} do not share a rank")
    declared, scaling = _rank_and_scaling(header, settings, module)
    if declared != shape_a[0]:
        raise UserError(f"{header.path}: {a} has rank {shape_a[0]}, adapter_config.json says {declared}")
    shape, stored = (shape_b[0], math.prod(shape_a[1:])), (shape_b[0], *shape_a[1:])
    return LoraModule(f"{module}.weight", a, b, declared, shape, stored, scaling, embedding)


def _rank_and_scaling(header: CheckpointHeader, settings: LoraSettings, module: str) -> tuple[int, float]:
    try:
        rank = int(settings.rank_pattern.value(module, settings.r))
        alpha = float(settings.alpha_pattern.value(module, settings.alpha))
    except ValueError as error:
        raise UserError(f"{header.path / 'adapter_config.json'}: {error}") from None
    return rank, alpha / (math.sqrt(rank) if settings.rslora else rank)


def _is_transposed(module: LoraModule, base: CheckpointHeader | None, settings: LoraSettings) -> bool:
    """Whether the base stores a layer's matrix as in x out."""
    if any(f".{module.target}".endswith(f".{parameter}") for parameter in settings.parameters):
        return False  # peft takes a parameter of two dimensions as out x in, whatever its layer is
    if base is None or module.target not in base.tensors:
        return settings.fan_in_fan_out
    stored = base.tensors[module.target].shape
    if module.stored != module.stored[::-1] or len(stored) != 2:
        return stored == module.shape[::-1] and stored != module.shape
    if "model_type" not in base.config:
        return settings.fan_in_fan_out
    layers = _CONV1D.get(base.config["model_type"])
    return layers is not None and re.search(rf"(^|\.)({layers})\.weight$", module.target) is not None


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
        if (stacked := self.contents.stacked.get(name)) is not None:
            return self._stacked(stacked)
        module = self.contents.modules.get(name)
        if module is None:
            return None
        a, b = self.factors(module)
        product = (b @ a) * module.scaling
        return product.T.contiguous() if module.transposed else product.view(module.stored)

    def factors(self, module: LoraModule) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r x in) and B (out x r) of one module in float32."""
        a, b = self.stored_factors(module)
        return a.float(), b.float()

    def stored_factors(self, module: LoraModule) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r x in) and B (out x r) of one module as they are stored."""
        a, b = self.checkpoint[module.a].flatten(1), self.checkpoint[module.b].flatten(1)
        if (part := module.part) is None:
            return a, b
        rows = slice(part.first_row, part.first_row + part.rows)
        return (
            a.view(part.experts, module.rank, -1)[part.expert],
            b.view(b.shape[0], module.rank, part.experts)[rows, :, part.expert],
        )

    def stored_experts(self, stacked: StackedExperts) -> tuple[torch.Tensor, torch.Tensor]:
        """A (experts x r x in) and B (experts x out x r) of all experts as they are stored."""
        a, b = self.checkpoint[stacked.a], self.checkpoint[stacked.b]
        each_b = b.view(b.shape[0], -1, stacked.experts).permute(2, 0, 1)
        return a.view(stacked.experts, -1, a.shape[1]), each_b

    def _stacked(self, stacked: StackedExperts) -> torch.Tensor:
        a, b = self.stored_experts(stacked)
        product = b.float() @ a.float() * stacked.scaling
        return product.transpose(1, 2).contiguous() if stacked.transposed else product

    def replacement(self, name: str) -> torch.Tensor | None:
        """A whole tensor that the adapter brings along (a bias, a module saved whole), else None."""
        key = self.contents.whole.get(name)
        return None if key is None else self.checkpoint[key]

    def on(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """The base's tensor of a name with this LoRA merged into it, in float32 where a difference is added."""
        replacement, delta = self.replacement(name), self.delta(name)
        stored = stored if replacement is None else replacement
        return stored if delta is None else stored.float() + delta
