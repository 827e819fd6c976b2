"""Which part of multimodal models is merged, and whose towers the result has.

    chosen = Modalities.read("language", {"vision": "A", "audio": "B"})
    composed = compose({"": base, "A": a, "B": b}, "", chosen)
    composed.models[""]         # the base's language, A's vision tower and projector, B's audio tower and projector
    composed.models["A"]        # A's language alone

The result has the class and the configuration of one model, its frame: the base where that has a place for every
carried tower, or else a model that a tower is carried from. Towers that are not carried are the frame's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.checkpoints.configurations import with_vocabulary
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader, read_json
from mergefront.adapters.checkpoints.lora import LoraTaskVector
from mergefront.adapters.checkpoints.names import expert_names
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.checkpoints.tokenizers import token_axes
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.grouping import split_at_layer, stack_of_tensor
from mergefront.optimizer.recipes.stacks import (
    NAMES,
    SCOPE,
    TEXT,
    TOWERS,
    Modalities,
    is_text_section,
    texts_of,
    tower_of,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Composition:
    """The models of a merge, each as far as it takes part.

    ``frame`` is the folder whose class, configuration and other files the result has, ``owners`` has the folder that
    each of its towers comes from.
    """

    models: Mapping[str, Checkpoint]
    frame: Path
    owners: Mapping[str, Path] = field(default_factory=dict)

    @property
    def is_scoped(self) -> bool:
        """Whether towers are left out of the merge."""
        return any(model.header.carried is not None for model in self.models.values())


def compose(models: Mapping[str, Checkpoint], base: str, chosen: Modalities) -> Composition:
    """The models of a merge by headers alone; ``base`` names the one that the others are compared with.

    Raises ``UserError`` for a scope or a tower that is in no model, and where no model has a place for all towers.
    """
    if chosen.scope is None:
        return Composition(models, models[base].path)
    whole = {key: model for key, model in models.items() if model.header.kind == "full"}
    if base not in whole:
        return Composition(models, models[base].path)  # whoever compares the models says so
    towers = {key: _towers(model.header) for key, model in whole.items()}
    _refuse_absent(models, base, towers, chosen)
    frame = _frame(whole, base, chosen)
    loras = [key for key in models if key not in whole]
    if frame != base and loras:
        raise UserError(
            f"{loras[0]!r} is a LoRA on the base, and the result is a model like {frame!r}, whose tensors have other "
            "names; merge the LoRA into the base first (peft: merge_and_unload, save_pretrained) and give that model"
        )
    parts = _base_parts(models, base, frame, towers) | _tower_parts(models, base, frame, towers, chosen)
    owners = {tower: frame for tower in towers[frame].values() if tower is not None}
    owners |= {tower: owner if owner in whole else base for tower, owner in chosen.carry.items()}
    config = _with_towers(
        _language_of(models[base].header, models[frame].header, frame == base),
        {tower: models[owner].header.config for tower, owner in owners.items() if owner != frame},
        list(owners),
    )
    carried = frozenset(name for name, part in parts.items() if part.tower is not None)
    infos = {name: part.origin.header.tensors[part.name] for name, part in parts.items()}
    header = replace(models[base].header, tensors=infos, config=config, carried=carried)
    made: dict[str, Checkpoint] = {}
    for key, model in models.items():
        known = towers[key] if key in whole else _towers(model.header, depths(models[base].header))
        kept = {name: _Part(model, name) for name in model.header.tensors if known[name] is None}
        own = {name: model.header.tensors[name] for name in kept}
        made[key] = ComposedCheckpoint(replace(model.header, tensors=own), kept)
    made[base] = ComposedCheckpoint(header, parts)
    return Composition(made, models[frame].path, {tower: models[owner].path for tower, owner in owners.items()})


@dataclass(frozen=True)
class _Part:
    """One tensor of a composed checkpoint: where it is stored, its name there, and the tower that it is of.

    ``lora`` is put on it.
    """

    origin: Checkpoint
    name: str
    tower: str | None = None
    lora: LoraTaskVector | None = None


class ComposedCheckpoint(Checkpoint):
    """A checkpoint whose tensors are those of others, under names of its own."""

    def __init__(self, header: CheckpointHeader, parts: Mapping[str, _Part]) -> None:
        self.header = header
        self._storages = {}
        self._parts = parts

    def __getitem__(self, name: str) -> torch.Tensor:
        part = self._parts[name]
        stored = part.origin[part.name]
        return stored if part.lora is None else part.lora.on(part.name, stored).to(stored.dtype)

    def release(self) -> None:
        """See ``Checkpoint``."""
        for part in self._parts.values():
            part.origin.release()


def _towers(header: CheckpointHeader, known: Collection[str] | None = None) -> dict[str, str | None]:
    """By name of a tensor: the tower that it is of, None where it is of text. ``known``: the model's stacks."""
    known = depths(header) if known is None else known
    return {name: _tower(name, known) for name in header.tensors}


def _tower(name: str, known: Collection[str]) -> str | None:
    if known and (stack := stack_of_tensor(name, known)) not in texts_of(known):
        return stack
    # A tower without numbered layers is no stack.
    return tower_of((split_at_layer(name) or (name,))[0]) or None


def _refuse_absent(
    models: Mapping[str, Checkpoint], base: str, towers: Mapping[str, Mapping[str, str | None]], chosen: Modalities
) -> None:
    if not any(stack in TEXT for stack in depths(models[base].header)):
        raise UserError(f"scope: {models[base].path} has no stack of text, so that scope: {SCOPE} merges nothing")
    for tower, owner in chosen.carry.items():
        if owner not in models:
            raise UserError(f"carry: {tower}: {owner!r} is none of the models {did_you_mean(owner, models)}")
        if owner in towers and tower not in towers[owner].values():
            there = ", ".join(sorted({found for found in towers[owner].values() if found is not None})) or "none"
            raise UserError(f"carry: {tower}: {owner!r} has no such tower; it has {there}")


def _frame(whole: Mapping[str, Checkpoint], base: str, chosen: Modalities) -> str:
    """The model whose class and configuration the result has: the first with a place for all towers, the base before
    others."""
    candidates = list(dict.fromkeys((base, *(owner for owner in chosen.carry.values() if owner in whole))))
    places = {key: _places(whole[key].header) for key in candidates}
    fitting = [key for key in candidates if chosen.carry.keys() <= places[key]]
    if not fitting:
        said = ", ".join(
            f"{key or 'the base'} ({whole[key].header.config.get('model_type')}) has "
            f"{' and '.join(sorted(places[key])) or 'none'}"
            for key in candidates
        )
        raise UserError(
            f"carry: no model has a place for {' and '.join(chosen.carry)}, so that no class could hold the result "
            f"({said}); name a base model whose architecture has all of them"
        )
    return fitting[0]


def _places(header: CheckpointHeader) -> set[str]:
    """The towers that a model's class can have: those it has, and those its configuration describes."""
    found = {tower for tower in _towers(header).values() if tower is not None}
    return found | {tower for key, _ in _sections(header.config) if (tower := tower_of(key))}


def _sections(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield key, value
            yield from _sections(value) if tower_of(key) is None and not is_text_section(key) else ()


def _base_parts(
    models: Mapping[str, Checkpoint], base: str, frame: str, towers: Mapping[str, Mapping[str, str | None]]
) -> dict[str, _Part]:
    """The base's tensors of text, by what the frame calls them."""
    own = [name for name, tower in towers[base].items() if tower is None]
    theirs = [name for name, tower in towers[frame].items() if tower is None]
    names = {our: their for their, our in expert_names(theirs, own).items()}
    return {names.get(name, name): _Part(models[base], name) for name in own}


def _tower_parts(
    models: Mapping[str, Checkpoint], base: str, frame: str, towers: Mapping[str, Mapping[str, str | None]],
    chosen: Modalities,
) -> dict[str, _Part]:  # fmt: skip
    """The tensors of the carried towers, and of the others that the frame has."""
    kept = {tower for tower in towers[frame].values() if tower is not None and tower not in chosen.carry}
    made: dict[str, _Part] = {}
    for tower, owner in {**dict.fromkeys(sorted(kept), frame), **chosen.carry}.items():
        lora = None
        if owner not in towers:
            lora = LoraTaskVector(models[owner], models[base].header)
            if not any(towers[base].get(name) == tower for name in lora.changed()):
                raise UserError(f"carry: {tower}: {owner!r} is a LoRA that leaves the base's {tower} as it is")
        origin = owner if lora is None else base
        for name, of in towers[origin].items():
            if of == tower:
                made[name] = _Part(models[origin], name, tower, lora)
    return made


def _language_of(base: CheckpointHeader, frame: CheckpointHeader, is_base: bool) -> Mapping[str, Any]:
    """The frame's configuration with as many rows of embedding as the base has, tied as they are there."""
    if is_base:
        return frame.config
    ours, theirs = (
        {header.tensors[name].shape[axis] for name, axis in token_axes(header.tensors).items()}
        for header in (base, frame)
    )
    config = {**frame.config, "tie_word_embeddings": base.tied}
    for key, section in frame.config.items():
        if is_text_section(key) and "tie_word_embeddings" in section:
            config[key] = {**section, "tie_word_embeddings": base.tied}
    if len(ours) != 1 or len(theirs) != 1:
        return config
    return with_vocabulary(config, theirs.pop(), ours.pop())


def _with_towers(
    config: Mapping[str, Any], owners: Mapping[str, Mapping[str, Any]], known: Collection[str]
) -> dict[str, Any]:
    """A model's configuration, what it says of some towers being said by their owners' instead."""
    made: dict[str, Any] = {}
    for key in dict.fromkeys([*config, *(key for given in owners.values() for key in given)]):
        tower = None if is_text_section(key) else tower_of_key(key, known)
        if tower is not None and tower in owners:
            if key in owners[tower]:
                made[key] = owners[tower][key]
        elif key in config:
            value = config[key]
            inner = {name: given[key] for name, given in owners.items() if isinstance(given.get(key), Mapping)}
            is_open = isinstance(value, Mapping) and not is_text_section(key) and tower is None
            made[key] = _with_towers(value, inner, known) if is_open else value
    return made


def tower_of_key(key: str, known: Collection[str]) -> str | None:
    """The tower that a key of a configuration or of a processor's settings is about; None where it is about none."""
    if key == "feature_extractor":
        return "audio"
    tower = tower_of(key.replace("video", "vision"))
    return next((name for name in reversed(NAMES) if name in TOWERS and name in known), None) if tower == "" else tower


def processor_file(name: str, frame: Path, owners: Mapping[str, Path]) -> Path | dict[str, Any] | None:
    """A processor's file ``name`` for a model whose towers come from ``owners``: a file to copy, or what to write.

    None where there is none. Raises ``UserError`` for settings that do not say which tower they are for.
    """
    given = {tower: folder / name for tower, folder in owners.items() if (folder / name).exists()}
    folders = set(owners.values()) or {frame}
    if len(folders) == 1 or not given:
        # Trainers may save an expert without its processor: then the frame's is what there is.
        return next((file for file in (next(iter(folders)) / name, frame / name) if file.exists()), None)
    contents = {tower: read_json(file) for tower, file in given.items()}
    first, *others = contents.values()
    if all(content == first for content in others):
        return next(iter(given.values()))
    kinds = {"image_processor_type": "vision", "video_processor_type": "vision", "feature_extractor_type": "audio"}
    about = {tower for key, tower in kinds.items() if any(key in content for content in contents.values())}
    if not about:
        return _with_towers(read_json(frame / name) if (frame / name).exists() else first, contents, list(owners))
    if len(about) == 1 and next(iter(about)) in given:
        return given[about.pop()]
    raise UserError(
        f"carry: {name} differs between {' and '.join(sorted({str(file.parent) for file in given.values()}))}, and "
        "does not say which of its settings are for which tower; save their processors with transformers 5 "
        "(processor.save_pretrained)"
    )
