"""Preflight of tasks: their files, what they ask of the base model, and items that several of them share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from mergefront.adapters.checkpoints.header import read_json
from mergefront.adapters.local.loading import refuse_likelihoods_of
from mergefront.adapters.local.reading.findings import described, labels_of, pooling_findings
from mergefront.adapters.remote.settings import BackendSection
from mergefront.adapters.tasks.encoders.classify import ClassifyTask
from mergefront.adapters.tasks.task import Task
from mergefront.adapters.tasks.task_types import hub_references, idle_options_of, read_task, resolved_task
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.racing.race import FEWEST_TO_RACE
from mergefront.study.preflight.findings import Findings
from mergefront.study.preflight.prompts import items_of, show_prompts
from mergefront.study.study_file import LocalBackendSection, StudyFile


def check_tasks(found: Findings) -> dict[str, str]:
    """Read every task's files; returns the direction of each task that is sound."""
    file, root, problems = found.file, found.root, found.problems
    directions: dict[str, str] = {}
    sound: dict[str, Task] = {}
    too_few: list[str] = []
    drawn: list[str] = []
    for name, config in file.tasks.items():
        task, faults = read_task(name, config, root, file.seed, found.models)
        problems.extend(f"tasks.{name}: {fault}" for fault in faults)
        if faults or task is None:
            directions[name] = "maximize"  # its objective is then no second problem
            continue
        sound[name] = task
        directions[name] = task.direction
        if task.verb == "generate":
            problems.extend(f"tasks.{name}: {fault}" for fault in _endless(task, config, found))
        idle = idle_options_of(config)
        if idle:
            found.warnings.append(f"task {name}: metric {config['metric']} has no use for {', '.join(idle)}")
        found.notes.extend(text for key in ("remark", "announcement") if (text := getattr(task, key, None)) is not None)
        if task.verb in LIVE_TYPES:
            problems.extend(f"tasks.{name}: {fault}" for fault in _needs_live_model(file, task))
        if task.verb == "python":
            continue
        if task.verb in LIVE_TYPES:
            with found.catch(f"tasks.{name}: "):
                _check_reading(found, task)
        else:
            problems.extend(f"tasks.{name}: {fault}" for fault in _silent(found))
        if task.verb == "loglikelihood" and isinstance(file.backend, LocalBackendSection) and not problems:
            with found.catch(f"tasks.{name}: "):
                refuse_likelihoods_of(found.frame or found.models.folder(str(file.merge.base_model)))
        if any(item.image for split in ("search", "report") for item in items_of(task, split)):
            problems.extend(f"tasks.{name}: {fault}" for fault in _blind(found))
        if config.get("temperature") and task.verb == "generate":
            drawn.append(name)
        search, report = (len(items_of(task, split)) for split in ("search", "report"))
        found.notes.append(f"task {name}: {search} search items, {report} report items")
        for reference in hub_references(config):
            found.notes.append(f"task {name}: {reference} is at commit {found.models.commit(reference)}, fetched")
        found.items[name] = search
        if search < FEWEST_TO_RACE:
            too_few.append(f"{name} ({search})")
    if file.racing and too_few:
        found.warnings.append(
            f"racing: every candidate answers all search items of {', '.join(too_few)}, since fewer than "
            f"{FEWEST_TO_RACE} items are too few to race"
        )
    if drawn and file.racing:
        found.warnings.append(
            f"racing: answers of {', '.join(drawn)} are drawn, and what is drawn is noise that a race takes for exact "
            "once all items are asked; more samples make it smaller"
        )
    if drawn and file.backend.type in ("openai", "ensemble"):
        found.notes.append(
            f"answers of {', '.join(drawn)} are drawn by the endpoint, which gets a seed and may ignore it; they are "
            "kept, so that a resumed study has the same"
        )
    if not file.tasks:
        problems.append("tasks: a local backend needs at least one task")
    problems.extend(_leaks(sound))
    if not problems and not isinstance(file.backend, BackendSection):
        show_prompts(found, sound, found.reader)
    return directions


LIVE_TYPES = {"python", "classify", "embed"}
"""Types of tasks, and what they ask, that need the live model of a local backend."""


def _needs_live_model(file: StudyFile, task: Task) -> list[str]:
    """What of a study is not for tasks that ask the live model, and score all their items together."""
    problems = []
    if isinstance(file.backend, BackendSection):
        asks = f"type {task.verb} asks the live model"
        problems.append(f"{asks}, which backend {file.backend.type} has not; use local")
    if isinstance(file.backend, LocalBackendSection) and file.backend.engine == "vllm":
        problems.append(f"type {task.verb} asks the live model, which engine vllm has not; use engine transformers")
    whole = getattr(task, "whole", "")
    if file.racing and whole:
        problems.append(f"{whole}, and racing asks them in parts; remove 'racing'")
    types = {str(config.get("type")) for config in file.tasks.values()}
    if task.verb == "embed" and types - {"embed", "python"}:
        others = ", ".join(sorted(map(str, types - {"embed", "python"})))
        problems.append(f"type embed reads models without their heads, which type {others} needs; make two studies")
    return problems


def _check_reading(found: Findings, task: Task) -> None:
    """Whether merges have the classes, or make the vectors, that a task asks for. Raises ``UserError``."""
    if not isinstance(found.file.backend, LocalBackendSection) or not isinstance(found.file.merge.models, Mapping):
        return
    config = _configuration(found)
    if not config:
        return  # its loader says what is wrong with it
    if isinstance(task, ClassifyTask):
        found.problems.extend(f"tasks.{task.name}: {line}" for line in task.unknown_labels(labels_of(config)))
        return
    folder = found.frame or found.models.folder(str(found.file.merge.base_model))
    experts = {name: found.models.folder(path) for name, path in found.file.merge.models.items()}
    pipeline, warnings = pooling_findings(folder, config, experts)
    found.notes.append(
        f"task {task.name}: texts are pooled by {described(pipeline)}, likeness is {pipeline.similarity}"
    )
    found.warnings.extend(line for line in warnings if line not in found.warnings)


def _silent(found: Findings) -> list[str]:
    """Why a task that asks for text cannot ask this study's merges."""
    read = _configuration(found)
    architecture = str((read.get("architectures") or [""])[0])
    if isinstance(found.file.backend, BackendSection) or not architecture or architecture.endswith(_USUAL_ENDS):
        return []
    from mergefront.adapters.local.asked import continues_text

    if continues_text(str(read.get("model_type")), architecture):
        return []
    return [
        f"the base model ({architecture}) continues no text; score it with a task of type classify, embed or python"
    ]


_USUAL_ENDS = ("ForCausalLM", "LMHeadModel")
"""Ends of the names of classes that need no look at transformers' tables, which take a second or two to import."""


def _blind(found: Findings) -> list[str]:
    """Why items with an image cannot be put to this study's merges."""
    backend = found.file.backend
    if isinstance(backend, BackendSection):
        return [f"some items have an image, which backend {backend.type} does not send; use backend local"]
    if isinstance(backend, LocalBackendSection) and backend.engine == "vllm":
        return ["some items have an image, which engine vllm is not shown; use engine transformers"]
    if importlib.util.find_spec("PIL") is None:
        return ["some items have an image, which needs Pillow; install it with: pip install pillow"]
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = _configuration(found).get("model_type")
    if kind is None or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return []
    return [f"some items have an image, and the base model ({kind}) reads none; drop the key 'image' from the items"]


def _configuration(found: Findings) -> Mapping[str, Any]:
    """The configuration that merges have, the base's or a frame's; nothing where its loader will say what is wrong."""
    base = found.file.merge.base_model
    if base is None:
        return {}
    try:
        # What a server calls its base is no model to look at.
        of_server = not isinstance(found.file.backend, LocalBackendSection)
        folder = found.frame or (found.root / base if of_server else found.models.folder(base))
        described = folder / "config.json"
        # os.path answers where a name is too long to exist, pathlib raises.
        return read_json(described) if os.path.isfile(described) else {}
    except UserError:
        return {}


def _endless(task: Task, config: Mapping[str, Any], found: Findings) -> list[str]:
    """Why no merge could write as much as a task lets it: the base model reads and writes fewer tokens in all."""
    resolved = resolved_task(config)
    thoughts = resolved["max_thinking_tokens"] if resolved.get("thinking") else 0
    wanted = getattr(task, "longest_answer", resolved.get("max_new_tokens", 0)) + thoughts
    read = _configuration(found)
    longest = next((read[key] for key in _LONGEST if isinstance(read.get(key), int)), None)
    if longest is None or wanted < longest:
        return []
    key = "max_gen_toks (gen_kwargs)" if config["type"] == "lm_eval" else "max_new_tokens"
    what = f"{key} and max_thinking_tokens are" if thoughts else f"{key} is"
    return [f"{what} {wanted}, but the base model takes {longest} tokens at most, the prompt included"]


_LONGEST = ("n_positions", "max_position_embeddings", "n_ctx")
"""Where a model's configuration says how many tokens it takes."""


def _leaks(tasks: Mapping[str, Task]) -> list[str]:
    """Report items of one task that the search optimises on in another: their report would be no report."""

    def contents(task: Task, split: str) -> set[str]:
        if task.verb == "python":
            return set()  # only its function knows the items, and says them when it scores
        # What several tasks of a group ask has the name of the task behind its hash.
        return {item.id.partition(":")[0] for item in items_of(task, split)}

    search = {name: contents(task, "search") for name, task in tasks.items()}
    found = []
    for name, task in tasks.items():
        report = contents(task, "report")
        for other, ids in search.items():
            shared = len(report & ids) if other != name else 0
            if shared:
                found.append(
                    f"tasks.{name}: the search optimises on {shared} of its report items, as search items of task "
                    f"{other}; give both tasks the same files and report_fraction, or remove the items from one"
                )
    return found
