"""Preflight of a backend and its tasks (headers, tokenizers, data, servers), and what a definition keeps of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.remote.http.section import Section
from mergefront.adapters.remote.settings import split_settings
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.grouping import layer_of
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.study.content import data_paths, fingerprints
from mergefront.study.definition import EvaluatorDefinition
from mergefront.study.study_file import LocalBackendSection, StudyFile

if TYPE_CHECKING:
    from mergefront.adapters.tasks.items import Item
    from mergefront.adapters.tasks.task import Task


def check_checkpoints(file: StudyFile, root: Path, problems: list[str], notes: list[str]) -> int | None:
    """Compare base and experts by their headers; returns the number of layers, None where the base cannot be read."""
    from mergefront.adapters.checkpoints.compatibility import compare_headers, compare_tokenizers
    from mergefront.adapters.checkpoints.header import read_header

    models = file.merge.models
    if not isinstance(models, Mapping):
        problems.append("merge.models: a local backend needs a path for each expert; write {name: path, ...}")
        models = {}
    if file.merge.base_model is None:
        problems.append("merge.base_model: this key is missing; a local backend needs the base model's folder")
        return None
    try:
        base = read_header(root / file.merge.base_model)
    except UserError as error:
        problems.append(f"merge.base_model: {_hinted(error, root)}")
        base = None
    for name, path in models.items():
        try:
            expert = read_header(root / path)
        except UserError as error:
            problems.append(f"merge.models.{name}: {_hinted(error, root)}")
            continue
        if base is None:
            continue
        problems.extend(f"merge.models.{name}: {problem}" for problem in compare_headers(base, expert, name))
        problems.extend(f"merge.models.{name}: {problem}" for problem in _no_lora(file, expert.kind))
        if expert.kind == "full":
            found = compare_tokenizers(root / file.merge.base_model, root / path, name)
            problems.extend(f"merge.models.{name}: {problem}" for problem in found)
    if base is None:
        return None
    notes.append(f"base model: {len(base.tensors)} tensors, {base.bytes / 1e6:,.0f} MB; {len(models)} experts")
    layers = {layer_of(name) for name in base.tensors} - {None}
    return len(layers)


def local_definition(file: StudyFile, root: Path) -> EvaluatorDefinition:
    """What a study's definition keeps of a local backend, its tasks and the content of their files."""
    from mergefront.adapters.tasks.task_types import resolved_task

    assert isinstance(file.backend, LocalBackendSection)
    models = file.merge.models if isinstance(file.merge.models, Mapping) else {}
    checkpoints = [str(file.merge.base_model), *models.values()]
    return EvaluatorDefinition(
        "local",
        backend=file.backend.model_dump(exclude={"type", "device"}),
        tasks={name: resolved_task(config) for name, config in file.tasks.items()},
        content=fingerprints([*checkpoints, *data_paths(file.tasks, root)], root),
        seed=file.seed,
    )


def server_definition(file: StudyFile, root: Path) -> tuple[EvaluatorDefinition, dict[str, Any]]:
    """What a study's definition keeps of a backend over HTTP and its tasks, and what may differ between runs."""
    from mergefront.adapters.tasks.task_types import resolved_task

    assert isinstance(file.backend, Section)
    backend, runtime = split_settings(file.backend)
    tasks = {name: resolved_task(config) for name, config in file.tasks.items()}
    content = fingerprints(data_paths(file.tasks, root), root)
    return EvaluatorDefinition("server", backend=backend, tasks=tasks, content=content, seed=file.seed), runtime


def check_server(file: StudyFile, space: MergeSpace, root: Path, problems: list[str], notes: list[str]) -> None:
    """Connect and ask what the tasks will need: before the search, and for a few short requests at most."""
    from mergefront.adapters.remote.backend_types import backend_problems
    from mergefront.adapters.tasks.task_types import build_task

    assert isinstance(file.backend, Section)
    tasks = [build_task(name, config, root, file.seed) for name, config in file.tasks.items()]
    verbs = sorted({task.verb for task in tasks})
    problems.extend(f"backend: {line}" for line in backend_problems(file.backend, space, root, verbs))
    notes.append(f"backend {file.backend.type}: answers {' and '.join(verbs) or 'with a loss'}")


def starts_by_importance(file: StudyFile, granularity: Mapping[str, Any], root: Path) -> dict[str, list[int]]:
    """``{blocks: N, boundaries: importance}`` as first layers; reads every expert's tensors once.

    Raises ``UserError``.
    """
    from mergefront.adapters.merging.importance import layer_importance
    from mergefront.optimizer.recipes.grouping import blocks_by_importance

    blocks = granularity.get("blocks")
    if set(granularity) != {"blocks", "boundaries"} or type(blocks) is not int:
        raise UserError(f"{dict(granularity)!r} must be written as {{blocks: N, boundaries: importance}}")
    assert file.merge.base_model is not None and isinstance(file.merge.models, Mapping)
    experts = {name: root / path for name, path in file.merge.models.items()}
    return {"starts": list(blocks_by_importance(layer_importance(root / file.merge.base_model, experts), blocks))}


def check_tasks(file: StudyFile, root: Path, problems: list[str], notes: list[str]) -> dict[str, str]:
    """Read every task's files; returns the direction of each task that is sound."""
    from mergefront.adapters.tasks.task_types import build_task, problems_of

    directions: dict[str, str] = {}
    sound: dict[str, Task] = {}
    for name, config in file.tasks.items():
        found = problems_of(config, root, file.seed)
        problems.extend(f"tasks.{name}: {problem}" for problem in found)
        if found:
            directions[name] = "maximize"  # its objective is then no second problem
            continue
        task = sound[name] = build_task(name, config, root, file.seed)
        directions[name] = task.direction
        problems.extend(f"tasks.{name}: {problem}" for problem in _endless(config, file, root))
        announcement = getattr(task, "announcement", None)
        if announcement is not None:
            notes.append(announcement)
        counts = {split: _count(task, split) for split in ("search", "report")}
        notes.append(f"task {name}: {counts['search']} search items, {counts['report']} report items")
    if not file.tasks:
        problems.append("tasks: a local backend needs at least one task")
    problems.extend(_leaks(sound))
    return directions


def _endless(config: Mapping[str, Any], file: StudyFile, root: Path) -> list[str]:
    """Why no merge could write as much as a task lets it: the base model reads and writes fewer tokens in all."""
    wanted = config.get("max_new_tokens", 0)
    described = root / (file.merge.base_model or "") / "config.json"
    # os.path answers where a name is too long to exist, pathlib raises.
    if file.merge.base_model is None or not os.path.isfile(described):
        return []
    try:
        read = dict(json.loads(described.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return []  # the model's own loader says what is wrong with it
    longest = next((read[key] for key in _LONGEST if isinstance(read.get(key), int)), None)
    if longest is None or wanted < longest:
        return []
    return [f"max_new_tokens is {wanted}, but the base model takes {longest} tokens at most, the prompt included"]


_LONGEST = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a model's configuration says how many tokens it takes."""


def _leaks(tasks: Mapping[str, Task]) -> list[str]:
    """Report items of one task that the search optimises on in another: their report would be no report."""
    search = {name: {item.id for item in _items(task, "search")} for name, task in tasks.items()}
    found = []
    for name, task in tasks.items():
        report = {item.id for item in _items(task, "report")}
        for other, ids in search.items():
            shared = len(report & ids) if other != name else 0
            if shared:
                found.append(
                    f"tasks.{name}: the search optimises on {shared} of its report items, as search items of task "
                    f"{other}; give both tasks the same files and report_fraction, or remove the items from one"
                )
    return found


def _no_lora(file: StudyFile, kind: str) -> list[str]:
    """Why a checkpoint of this kind cannot be merged by the file's methods, if that is because it is no LoRA."""
    from mergefront.optimizer.recipes.methods import METHODS

    methods = [file.merge.method] if isinstance(file.merge.method, str) else file.merge.method
    of_loras = [name for name in methods if name in METHODS and METHODS[name].lora is not None]
    if kind == "lora" or not of_loras:
        return []
    return [
        f"{of_loras[0]} merges LoRAs, and this is a whole checkpoint; use task_arithmetic, or give the LoRA's folder"
    ]


def _count(task: Task, split: str) -> int:
    return len(_items(task, split))


def _items(task: Task, split: str) -> Sequence[Item]:
    try:
        return task.items(split)
    except UserError:
        return ()


def _hinted(error: UserError, root: Path) -> str:
    readme = root / "README.md"
    text = str(error)
    if "no such file or folder" in text:
        text += " (paths are relative to the study file" + (f"; see {readme})" if readme.exists() else ")")
    return text
