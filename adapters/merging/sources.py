"""A base model and its experts as tensors by name, whatever they came from."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mergefront.adapters.checkpoints.compatibility import compare_models
from mergefront.adapters.checkpoints.dtypes import main_dtype, one_dtype
from mergefront.adapters.checkpoints.header import DTYPES, Checkpoint, CheckpointHeader, TensorInfo
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.checkpoints.names import embedding_name, expert_names, head_name, is_unread
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.merging.modalities import Composition, compose
from mergefront.adapters.merging.offload.memory import stretch
from mergefront.adapters.merging.vocabulary import Alignment, TokenizerChoice, align
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.stacks import Modalities

Source = str | Path | Checkpoint | Mapping[str, torch.Tensor]
_STORED_NAMES = {f"torch.{torch_name}": name for name, (_, torch_name) in DTYPES.items()}


BASE = ""
"""The base's name among models that are opened together; no expert is called so."""


class OpenedModels(NamedTuple):
    """Base (``BASE``) and experts as far as they are merged, with one vocabulary, before a number is read.

    ``dtype`` is torch's name of what merges are rounded to; ``rounds_all``, or else each tensor to the base's own.
    """

    composition: Composition
    aligned: Alignment
    dtype: str
    rounds_all: bool


def open_models(
    base: str | PathLike[str],
    experts: Mapping[str, str | PathLike[str]],
    dtype: str,
    tokenizer_source: str | Mapping[str, Any] | None,
    scope: str | None,
    carry: Mapping[str, str] | None,
) -> OpenedModels:
    """Read the headers of folders; ``dtype`` "auto" is what most of the base is stored in, the rest as a study file
    says it. Raises ``UserError`` for what does not go together."""
    opened = {name: Checkpoint(Path(path)) for name, path in {BASE: base, **experts}.items()}
    composition = compose(opened, BASE, Modalities.read(scope, carry))
    headers = {name: model.header for name, model in composition.models.items()}
    dtype = main_dtype(headers[BASE]) if dtype == "auto" else dtype
    rounds_all = one_dtype(headers[BASE], list(headers.values()), dtype) is not None
    aligned = align(dict(composition.models), BASE, TokenizerChoice.read(tokenizer_source))
    return OpenedModels(composition, aligned, dtype, rounds_all)


class Entry(NamedTuple):
    """An expert's tensor: its own numbers, or its difference from the base where ``is_delta``."""

    tensor: torch.Tensor
    is_delta: bool


def open_source(source: Source) -> Checkpoint | Mapping[str, torch.Tensor]:
    """A path becomes a memory-mapped checkpoint; anything else is taken as it is."""
    return Checkpoint(source) if isinstance(source, (str, Path)) else source


def header_of(source: Checkpoint | Mapping[str, torch.Tensor], name: str) -> CheckpointHeader:
    """The header of a checkpoint or of a view of one, or one that describes tensors in memory."""
    header = getattr(source, "header", None)
    if isinstance(header, CheckpointHeader):
        return header
    tensors = {
        key: TensorInfo(tuple(tensor.shape), _STORED_NAMES.get(str(tensor.dtype), "other"), Path(name), 0, 0)
        for key, tensor in source.items()
    }
    head, embedding = head_name(tensors), embedding_name(tensors)
    config = {}
    if head is not None and embedding is not None:
        config["tie_word_embeddings"] = _same(source[head], source[embedding])
    return CheckpointHeader(Path(name), "full", tensors, (), config)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and (first.data_ptr() == second.data_ptr() or torch.equal(first, second))


class ExpertSource:
    """One expert against ``reference``, the base or without one the first expert: which tensors it changes, and how.

    Raises ``UserError`` where the two are not one model; ``allow``: see ``compare_models``.
    """

    def __init__(
        self,
        name: str,
        source: Checkpoint | Mapping[str, torch.Tensor],
        reference: Checkpoint | Mapping[str, torch.Tensor] | None,
        allow: Collection[str] = (),
    ) -> None:
        self.name = name
        self.source = source
        header = header_of(source, name)
        base = None if reference is None else header_of(reference, "base model")
        is_lora = isinstance(source, Checkpoint) and header.kind == "lora"
        self.lora = LoraTaskVector(source, base) if is_lora else None  # type: ignore[arg-type]
        self._alias: dict[str, str] = {}
        self._unread: frozenset[str] = frozenset()
        if reference is None:
            problems = refuse_quantised(header, f"expert {name!r}")
            if self.lora is not None:
                problems.append(f"expert {name!r} is a LoRA; give the base model that it belongs to")
        else:
            reference_header = header_of(reference, "base model")
            problems = compare_models(
                reference_header, header, name, allow, equal=lambda ours, theirs: _same(reference[ours], source[theirs])
            ).problems
            self._alias = expert_names(reference_header.tensors, header.tensors) if self.lora is None else {}
            self._unread = frozenset(
                tensor for tensor, info in reference_header.tensors.items() if is_unread(tensor, info.shape)
            )
        if problems:
            raise UserError("\n".join(problems))
        if reference is not None and self.lora is None:
            self._follow_ties(reference_header, header)

    def _follow_ties(self, base: CheckpointHeader, header: CheckpointHeader) -> None:
        """Let what the expert does not store be what it repeats; what it stores and the base does not must repeat."""
        for tensor in base.tensors:
            repeated = header.repeated_by(tensor)
            if self._alias.get(tensor, tensor) not in header.tensors and repeated is not None:
                self._alias[tensor] = repeated
        own = {self._alias.get(tensor, tensor) for tensor in base.tensors}
        for extra in header.tensors:
            repeated = None if extra in own else header.repeated_by(extra)
            if repeated is not None and not _same(self.source[extra], self.source[repeated]):
                raise UserError(
                    f"expert {self.name!r}: its config ties {extra} to {repeated}, but the two differ; "
                    "untie the base and the expert first (tie_word_embeddings false), or drop the expert's tensor"
                )

    def names(self) -> Iterator[str]:
        """Names of the tensors that the expert has or changes."""
        return iter(self.lora.changed() if self.lora is not None else self.source)

    def has(self, name: str) -> bool:
        """Whether a whole checkpoint has a tensor, under its own name for it."""
        return self._alias.get(name, name) in self.source

    @property
    def is_mapped(self) -> bool:
        """Whether its tensors are those of a memory-mapped file."""
        return isinstance(self.source, Checkpoint)

    def whole(self, name: str) -> TensorInfo | torch.Tensor | None:
        """What is known of a whole checkpoint's tensor without reading it; None where it leaves the base as it is."""
        if self.lora is not None or name in self._unread or not self.has(name):
            return None
        header, own = getattr(self.source, "header", None), self._alias.get(name, name)
        return self.source[own] if header is None else header.tensors[own]

    def entry(self, name: str) -> Entry | None:
        """The expert's tensor, or None where it leaves the base as it is."""
        if name in self._unread:
            return None
        if self.lora is None:
            return Entry(self.source[self._alias.get(name, name)], False) if self.has(name) else None
        replacement, delta = self.lora.replacement(name), self.lora.delta(name)
        if replacement is not None:
            return Entry(replacement if delta is None else replacement.float() + delta, False)
        return None if delta is None else Entry(delta, True)


def check_finite(
    tensor: torch.Tensor,
    owner: str,
    name: str,
    meaning: str = "; the checkpoint is damaged or its training diverged",
) -> None:
    """Raise ``UserError`` with the tensor's name, and what it means, when it holds NaN or infinity."""
    if not is_finite(tensor):
        raise UserError(f"{owner}: tensor {name!r} holds NaN or infinity{meaning}")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.is_floating_point():
        return True
    flat = tensor.reshape(-1)
    step = stretch(tensor.device)
    for start in range(0, flat.numel(), step):
        low, high = torch.aminmax(flat[start : start + step])
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
    return True
