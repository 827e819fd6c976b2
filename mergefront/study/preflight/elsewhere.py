"""Preflight of what scores elsewhere: servers, judges and outside harnesses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.checkpoints.stacks import depths
from mergefront.adapters.merging.task_vectors.c_kernel import WITHOUT_KERNEL, library
from mergefront.adapters.merging.vocabulary import TokenizerChoice
from mergefront.adapters.remote.backend_types import models_read_here, try_backend
from mergefront.adapters.remote.judge import judge_options, judge_problems, try_judge
from mergefront.adapters.remote.settings import BackendSection
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.adapters.tasks.task_types import build_task
from mergefront.optimizer.errors import did_you_mean
from mergefront.optimizer.recipes.mergekit.configuration import OF_MERGEKIT
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses
from mergefront.study.preflight.findings import Findings
from mergefront.study.preflight.prompts import show_prompts
from mergefront.study.study_file import LocalBackendSection, StudyFile


def check_external(found: Findings) -> dict[str, int] | None:
    """What cannot be had of an outside harness, and what it may not be able to read; returns the layers of every stack
    of a base that is here."""
    file, problems = found.file, found.problems
    tells = "an outside harness scores, and tells it ('mergefront tell')"
    if file.tasks:
        problems.append(f"tasks: {tells}; remove 'tasks' and name objectives with their directions")
    if file.racing:
        problems.append(f"racing: {tells}, on the items that it chooses; remove 'racing'")
    if file.stop.model_fields_set:
        problems.append("stop: 'mergefront ask' ends with the budget (search.evaluations), by no rule; remove 'stop'")
    base, models = file.merge.base_model, file.merge.models
    named = {} if base is None else {"base_model": base}
    named |= {f"models.{name}": path for name, path in models.items()} if isinstance(models, Mapping) else {}
    here = {key: path for key, path in named.items() if os.path.exists(found.root / path)}
    for key, path in here.items():
        is_lora = os.path.exists(found.root / path / "adapter_config.json")
        if is_lora and base is None:
            problems.append(f"merge.{key}: this is a LoRA; name the model that it belongs to as base_model")
        elif is_lora and key == "base_model":
            problems.append("merge.base_model: this is a LoRA; name the model that it belongs to")
        if set("+@") & set(str((found.root / path).resolve())):
            found.notes.append(f"merge.{key}: mergekit takes a + in a path for a LoRA, and an @ for a revision")
    choice, donors = TokenizerChoice(), ("base", "union", *models)
    with found.catch("merge."):
        choice = TokenizerChoice.read(file.merge.tokenizer_source)
    if choice.model is not None and choice.model not in donors:
        hint = did_you_mean(choice.model, donors)
        problems.append(f"merge.tokenizer_source: {choice.model!r} is none of the models {hint}")
    elsewhere = [path for key, path in named.items() if key not in here]
    if elsewhere:
        found.notes.append(f"not in this folder, so 'mergefront ask' prints them as they are: {', '.join(elsewhere)}")
    methods = [file.merge.method] if isinstance(file.merge.method, str) else file.merge.method
    unknown = [name for name in methods if name in METHODS and name not in OF_MERGEKIT]
    unknown += ["transplants"] if choice.transplant is not None else []
    if unknown:
        found.notes.append(f"mergekit has no {', '.join(unknown)}; 'mergefront merge' reads the recipes")
    if file.merge.space.granularity == "global" or "base_model" not in here:
        return {}
    with found.catch("merge.base_model: "):
        return depths(read_header(found.root / str(base)))
    return None


def check_server(found: Findings, space: MergeSpace) -> Mapping[str, Mapping[str, Any]]:
    """Connect and ask what the tasks will need: before the search, and for a few short requests at most.

    Returns what a study keeps of the models there.
    """
    file, root = found.file, found.root
    assert isinstance(file.backend, BackendSection)
    tasks = {name: build_task(name, config, root, file.seed, found.models) for name, config in file.tasks.items()}
    read_here = models_read_here(file.backend, space)
    places = None
    with found.catch("merge.models: "):
        places = found.models.settled(read_here)
        # A canary asks the server with each LoRA, which it needs whole.
        for reference in read_here:
            places.folder(reference)
    if places is None:
        return {}
    found.models.commits.update(places.commits)
    verbs = sorted({task.verb for task in tasks.values()})

    def look(reader: Reader) -> None:
        show_prompts(found, tasks, reader)

    tried = try_backend(file.backend, space, places, verbs, look, counts_tokens=_counts_tokens(file))
    found.problems.extend(f"backend: {line}" for line in tried.problems)
    found.notes.append(f"backend {file.backend.type}: answers {' and '.join(verbs) or 'with a loss'}")
    if tried.proved:
        found.notes.append(f"backend {file.backend.type}: {tried.proved}")
    return tried.served


def check_engine(found: Findings) -> None:
    """Whether the vLLM that is to compute merges is there, as far as that can be seen without starting it; and the
    kernel that merges."""
    backend = found.file.backend
    if library() is None:
        found.notes.append(WITHOUT_KERNEL)
    if isinstance(backend, LocalBackendSection) and backend.engine == "vllm":
        from mergefront.adapters.remote.vllm.whole_merges import engine_there

        if backend.vllm.weights == "merge" and found.file.merge.method_files:
            found.problems.append("backend.vllm.weights: methods of your own are merged here; use auto, file or reload")
        with found.catch():
            found.notes.append(engine_there(backend.vllm.at(found.root)))


def check_judges(found: Findings, anchors: Sequence[str], database: Database | None) -> None:
    """Whether tasks name judges and anchors that there are, and, where all else is sound, whether each judge gives
    verdicts: a few short requests, kept in the study's database if there is one."""
    file, problems = found.file, found.problems
    asked: dict[str, list[JsonlTask]] = {name: [] for name in file.judges}
    for name, config in file.tasks.items():
        if config.get("metric") != "judge" or any(one.startswith(f"tasks.{name}:") for one in problems):
            continue
        task = build_task(name, config, found.root, file.seed, found.models)
        options = judge_options(task)
        if options is None or not isinstance(task, JsonlTask):
            continue
        problems.extend(f"tasks.{name}: {line}" for line in judge_problems(options, file.judges, anchors))
        asked.setdefault(options.by, []).append(task)
    found.warnings.extend(f"judges.{name}: no task is judged by it" for name, tasks in asked.items() if not tasks)
    if problems:
        return
    cache = None if database is None else DatabaseResponses(database)
    for name, tasks in asked.items():
        with found.catch(f"judges.{name}: "):
            found.notes += [try_judge(file.judges[name], tasks, found.root, cache, file.seed)] if tasks else []


def _counts_tokens(file: StudyFile) -> bool:
    """Whether scores or constraints need the number of tokens that a server writes."""
    bounded = (one if isinstance(one, str) else one.name for one in file.constraints)
    metrics = (task.get("metric") for task in file.tasks.values())
    return "output_tokens" in metrics or any("generated_tokens" in one for one in bounded)
