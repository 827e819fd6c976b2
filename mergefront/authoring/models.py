"""What a first study file says of its models, read off their headers and tokenizer files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.adapters.checkpoints.compatibility import compare_models
from mergefront.adapters.checkpoints.dtypes import main_dtype
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, read_json
from mergefront.adapters.checkpoints.lora import read_lora
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.hub.places import Preview
from mergefront.adapters.merging.vocabulary import TokenizerChoice, align
from mergefront.authoring.task_entries import Asked
from mergefront.formatting import size
from mergefront.optimizer.errors import StudyFileError, UserError

_NO_NAME = re.compile(r"(checkpoint|step|epoch)[-_]?\d*|final|best|last|lora|adapter|model|output|hf", re.IGNORECASE)
"""Folders that say nothing of the expert that lies in them."""


@dataclass(frozen=True)
class Models:
    """A base and its experts by name, opened without their numbers; ``references`` are as a study file writes them.

    ``places`` keeps the headers of those on the Hub. ``tokenizer_source`` is what brings their vocabularies together,
    None where they are one.
    """

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    base_reference: str
    references: Mapping[str, str]
    places: Preview
    tokenizer_source: str | None = None

    @property
    def header(self) -> CheckpointHeader:
        return self.base.header

    @property
    def parameters(self) -> int:
        """Numbers that the base has."""
        return sum(math.prod(info.shape) for info in self.header.tensors.values())

    @property
    def asked(self) -> Asked:
        """How the base can be asked."""
        config = self.header.config
        inner = config.get("text_config")
        text = inner if isinstance(inner, Mapping) else config
        longest = next((text[key] for key in ("max_position_embeddings", "n_positions") if key in text), None)
        return Asked(has_chat_template(self.header.path), longest if isinstance(longest, int) else None)

    def held_bytes(self) -> list[int]:
        """Memory of the base's tensors, then of each expert's, as a merge holds them: a LoRA's as whole matrices."""
        held = [self.header.bytes]
        for expert in self.experts.values():
            if expert.header.kind == "lora":
                targets = set(read_lora(expert.header, self.header).targets) & self.header.tensors.keys()
                held.append(sum(4 * math.prod(self.header.tensors[name].shape) for name in targets))
            else:
                held.append(expert.header.bytes)
        return held


def look_at(base: str, experts: Sequence[str], folder: Path) -> Models:
    """Open the models that a study file in ``folder`` is to name; of those on the Hub only headers are fetched.

    Paths are relative to the current folder. Raises ``StudyFileError`` with every problem.
    """
    places = Preview(Path.cwd())
    problems: list[str] = []
    opened: dict[str, Checkpoint] = {}
    for reference in dict.fromkeys((base, *experts)):
        try:
            opened[reference] = Checkpoint(places.folder(reference))
            described(opened[reference].header, opened[base].header if base in opened else None)
        except UserError as error:
            problems.append(f"{reference}: {error}")
    if base in opened and opened[base].header.kind == "lora":
        problems.append(f"{base}: this is a LoRA; the first model is the base, a whole checkpoint")
    problems += [f"{one}: this is the base itself" for one in experts if one == base]
    if problems:
        raise StudyFileError("the models", problems)

    def written(reference: str) -> str:
        if places.hub_name(reference) is not None or os.path.isabs(reference):
            return reference
        return os.path.relpath(reference, folder)

    names = _names(list(dict.fromkeys(experts)))
    models = {name: opened[reference] for name, reference in names.items()}
    return Models(
        opened[base],
        models,
        written(base),
        {name: written(reference) for name, reference in names.items()},
        places,
        _tokenizer_source({"": opened[base], **models}),
    )


def described(header: CheckpointHeader, base: CheckpointHeader | None = None) -> str:
    """A model in a line: what it is, its shape and size."""
    if header.kind == "lora":
        contents = read_lora(header, base)
        ranks = sorted({module.rank for module in contents.modules.values()})
        rank = f" of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
        return f"a LoRA{rank} on {len(contents.targets)} matrices, {size(header.bytes)}"
    architecture = str((header.config.get("architectures") or ["a model"])[0])
    parameters = sum(math.prod(info.shape) for info in header.tensors.values())
    count = f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
    layers = " + ".join(f"{number} layers" for number in depths(header).values())
    template = "" if base is not None else ", chat template" if has_chat_template(header.path) else ", no chat template"
    shape = f"{count} parameters, {layers or 'no layers'}, {main_dtype(header)}, {size(header.bytes)}"
    return f"{'a whole checkpoint, ' if base is not None else ''}{architecture}: {shape}{template}"


def has_chat_template(folder: Path) -> bool:
    """Whether a model's tokenizer files hold a chat template."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("chat_template"))


def _names(references: Sequence[str]) -> dict[str, str]:
    """A short name for each expert, from the end of its path."""
    names: dict[str, str] = {}
    for reference in references:
        parts = [part for part in re.split(r"[/\\]|@[^/]*", reference.removeprefix("hf://")) if part.strip(".")]
        told = [part for part in parts if not _NO_NAME.fullmatch(part)] or parts or ["expert"]
        stem = re.sub(r"[^\w.+-]+", "-", told[-1])
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names[name] = reference
    return names


def _tokenizer_source(models: Mapping[str, Checkpoint]) -> str | None:
    """What makes one vocabulary of the models', or None where nothing has to, or nothing here does."""
    for choice in (None, "union", "base"):
        if _fit(models, choice):
            return choice
    return None


def _fit(models: Mapping[str, Checkpoint], choice: Any) -> bool:
    try:
        aligned = align(models, "", TokenizerChoice.read(choice)).models
        base = aligned[""].header
        return not any(compare_models(base, model.header, name).problems for name, model in aligned.items() if name)
    except UserError:
        return False
