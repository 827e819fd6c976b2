"""Preflight of checkpoints by their headers: whether they are there, fit each other and load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.checkpoints.compatibility import compare_models, unknown_keys
from mergefront.adapters.checkpoints.header import Checkpoint, CheckpointHeader
from mergefront.adapters.checkpoints.lora import read_lora
from mergefront.adapters.checkpoints.quantised import refuse_quantised
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.hub.snapshots import room_in_cache
from mergefront.adapters.local.loading import loading_findings
from mergefront.adapters.merging.modalities import Composition, compose
from mergefront.adapters.merging.output.metadata import describe
from mergefront.adapters.merging.vocabulary import Alignment, TokenizerChoice, align
from mergefront.formatting import size
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import Grouping, blocks_by_importance, split_at_layer
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.stacks import Modalities, texts_of
from mergefront.study.preflight.findings import Findings
from mergefront.study.preflight.tasks import LIVE_TYPES
from mergefront.study.study_file import LocalBackendSection, StudyFile

if TYPE_CHECKING:
    from mergefront.adapters.merging.offload.placement import MaxMemory


def check_checkpoints(found: Findings) -> dict[str, int] | None:
    """Compare base and experts by their headers; returns the layers of every stack, None where the base cannot be
    read."""
    file, problems = found.file, found.problems
    models = file.merge.models
    if not isinstance(models, Mapping):
        problems.append("merge.models: a local backend needs a path for each expert; write {name: path, ...}")
        models = {}
    if file.merge.base_model is None:
        problems.append("merge.base_model: this key is missing; a local backend needs the base model's folder")
        return None
    if isinstance(file.backend, LocalBackendSection) and file.backend.max_memory is not None:
        _check_bound(found, file.backend.max_memory)
    base, opened = None, dict[str, Checkpoint]()
    with found.catch("merge.base_model: ", found.hint_at(file.merge.base_model)):
        opened = {"": Checkpoint(found.models.folder(file.merge.base_model))}
        base = opened[""].header
        problems.extend(f"merge.base_model: {problem}" for problem in refuse_quantised(base, "the base model"))
    for name, path in models.items():
        with found.catch(f"merge.models.{name}: ", found.hint_at(path)):
            opened[name] = Checkpoint(found.models.folder(path))
    if base is None:
        return None
    composition = Composition(opened, base.path)
    if not problems:
        with found.catch("merge."):
            found.modalities = Modalities.read(file.merge.scope, file.merge.carry)
            composition = compose(opened, "", found.modalities)
            found.frame = composition.frame
        if problems:
            return depths(base)  # whatever else differs may be outside the scope
    opened = dict(composition.models)
    base = opened[""].header
    aligned: Mapping[str, Checkpoint] = opened
    alignment = None
    if not problems:
        with suppress(UserError):  # so that what differs beside the tokens is said as well
            aligned = align(opened, "", TokenizerChoice("base")).models
        with found.catch("merge: "):
            alignment = align(opened, "", TokenizerChoice.read(file.merge.tokenizer_source))
            aligned = alignment.models
    for name in (name for name in models if name in opened):
        expert = aligned[name].header
        with found.catch(f"merge.models.{name}: "):
            compared = compare_models(aligned[""].header, expert, name, file.merge.allow)
            found.warnings.extend(compared.notes)
            differences = [*compared.problems, *_no_factors(file, expert, aligned[""].header)]
            problems.extend(f"merge.models.{name}: {problem}" for problem in differences)
    if not problems and alignment is not None:
        _check_loading(found, base, composition, alignment)
    unknown = unknown_keys(file.merge.allow, [model.header for model in opened.values()])
    problems.extend(f"merge.{problem}" for problem in unknown)
    problems.extend(_repeated({name: model.path for name, model in opened.items() if name}))
    problems.extend(_idle_kinds(file.merge.space.split, base))
    beside = "" if file.merge.experts is not None else f"; {len(models)} experts"
    found.notes.append(f"base model: {len(base.tensors)} tensors, {size(base.bytes)}{beside}")
    _say_downloads(found)
    stacks = depths(base)
    if len(stacks) > 1:
        found.notes.append(f"stacks: {', '.join(f'{name} of {layers} layers' for name, layers in stacks.items())}")
    if base.carried is None:
        return stacks
    carried = [f"{tower} of {name}" for tower, name in found.modalities.carry.items()]
    found.notes.append(
        f"scope language: {len(base.tensors) - len(base.carried)} tensors are merged, {len(base.carried)} are kept as "
        f"they are ({', '.join(carried) or 'all of the base'}); merges are models like {composition.frame}"
    )
    return {name: stacks[name] for name in texts_of(stacks)}


def starts_by_importance(found: Findings, granularity: Mapping[str, Any]) -> dict[str, list[int]]:
    """``{blocks: N, boundaries: importance}`` as first layers; reads every expert's tensors once, and so fetches them.

    Raises ``UserError``.
    """
    from mergefront.adapters.merging.importance import layer_importance, opened_alike

    file, places = found.file, ModelPlaces(found.root, found.models.commits)
    blocks = granularity.get("blocks")
    if set(granularity) != {"blocks", "boundaries"} or type(blocks) is not int:
        raise UserError(f"{dict(granularity)!r} must be written as {{blocks: N, boundaries: importance}}")
    if file.merge.base_model is None or not isinstance(file.merge.models, Mapping):
        raise UserError("boundaries: importance needs the folder of the base model and of each expert")
    folders = {name: places.folder(path) for name, path in file.merge.models.items()}
    modalities = Modalities.read(file.merge.scope, file.merge.carry)
    tokenizer = TokenizerChoice.read(file.merge.tokenizer_source)
    base, experts = opened_alike(places.folder(file.merge.base_model), folders, modalities, tokenizer)
    return {"starts": list(blocks_by_importance(layer_importance(base, experts), blocks))}


def _check_bound(found: Findings, bound: MaxMemory) -> None:
    import torch

    from mergefront.adapters.merging.offload.placement import memory_limits

    with found.catch("backend."):
        memory_limits(bound, [torch.device("cpu")])


def _say_downloads(found: Findings) -> None:
    """What a run will fetch from the Hub, and whether the disk has room for it."""
    sizes = found.models.to_fetch
    if not sizes:
        return
    cache, room = room_in_cache()
    total = sum(sizes.values())
    named = ", ".join(f"{name} ({size(count)})" for name, count in sizes.items())
    found.warnings.append(f"a run fetches {size(total)} from the Hub into {cache}: {named}")
    if room < total:
        found.problems.append(
            f"merge: the models take {total / 1e9:,.1f} GB more in {cache}, where {room / 1e9:,.1f} GB are free; make "
            "room, or set HF_HOME to a folder on another disk"
        )


def _check_loading(found: Findings, base: CheckpointHeader, composition: Composition, alignment: Alignment) -> None:
    """Whether transformers can make a live model of the base's tensors, or of those of several models."""
    where, stored, described = "merge.base_model: ", base, None
    if composition.is_scoped:
        where, stored = "merge.carry: ", alignment.models[""].header
        with found.catch("merge."):
            folders = [model.path for model in composition.models.values()]
            described = describe(composition, alignment, stored.config, folders)
        if described is None:
            return
    with found.catch(where):
        kinds = {str(task.get("type")) for task in found.file.tasks.values()}
        for_text, headless = not kinds <= LIVE_TYPES, kinds == {"embed"}
        loading = loading_findings(stored, alignment, described, for_text, headless)
        found.problems.extend(f"{where}{problem}" for problem in loading.problems)
        found.warnings.extend(loading.unread)
        found.reader = loading.reader


def _repeated(models: Mapping[str, Path]) -> Iterator[str]:
    """Experts that are one checkpoint under two names."""
    known: dict[str, str] = {}
    for name, path in models.items():
        other = known.setdefault(os.path.realpath(path), name)
        if other != name:
            yield f"merge.models.{name}: this is the same checkpoint as {other}; name it once"


def _idle_kinds(split: Sequence[str], base: CheckpointHeader) -> Iterator[str]:
    """Kinds of module that no tensor follows, so that their coefficients would change nothing."""
    grouping = Grouping(split=tuple(dict.fromkeys(split)))
    merged = [name for name in base.tensors if name not in (base.carried or ())]
    reached = {grouping.module_of(name) for name in merged}
    inside = {parts[2].split(".")[1]: None for name in merged if (parts := split_at_layer(name)) is not None}
    for kind in grouping.split:
        if kind not in reached:
            yield (
                f"merge.space.split: {kind!r} is in no tensor's name, or only where another kind comes first; the "
                f"modules of a layer are called {', '.join(inside)}"
            )


def _no_factors(file: StudyFile, expert: CheckpointHeader, base: CheckpointHeader) -> list[str]:
    """Why an expert cannot be merged by the file's methods, if that is because they merge the factors of LoRAs."""
    methods = [file.merge.method] if isinstance(file.merge.method, str) else file.merge.method
    of_loras = [name for name in methods if name in METHODS and METHODS[name].lora is not None]
    if not of_loras:
        return []
    if expert.kind == "lora":
        stacked = read_lora(expert, base).stacked
        return [
            f"{of_loras[0]} merges the factors of matrices, and this LoRA adapts {tensor}, which holds all experts; "
            "use task_arithmetic"
            for tensor in list(stacked)[:1]
        ]
    return [
        f"{of_loras[0]} merges LoRAs, and this is a whole checkpoint; use task_arithmetic, or give the LoRA's folder"
    ]
