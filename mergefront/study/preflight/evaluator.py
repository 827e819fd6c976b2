"""What a definition keeps of how a sound file scores its recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mergefront.adapters.checkpoints.dtypes import main_dtype
from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.remote.backend_types import models_read_here
from mergefront.adapters.remote.settings import BackendSection, split_settings
from mergefront.adapters.tasks.task_types import hub_references, resolved_task
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.study.content import data_paths, fingerprints
from mergefront.study.definition import EvaluatorDefinition
from mergefront.study.preflight.findings import Findings
from mergefront.study.study_file import ExternalBackendSection, FunctionBackendSection


def evaluator_definition(found: Findings, space: MergeSpace) -> tuple[EvaluatorDefinition, dict[str, Any]]:
    """How a sound file's recipes are scored (backend, tasks, content of their files), and what of it may differ
    between runs."""
    file, root = found.file, found.root
    if isinstance(file.backend, FunctionBackendSection):
        return EvaluatorDefinition("function", call=file.backend.call), {}
    if isinstance(file.backend, ExternalBackendSection):
        return EvaluatorDefinition("external"), {}
    backend: dict[str, Any]
    runtime: dict[str, Any]
    kind: Literal["local", "server"]
    if isinstance(file.backend, BackendSection):
        kind, checkpoints = "server", models_read_here(file.backend, space)
        settings, runtime = split_settings(file.backend)
        backend = dict(settings)
    else:
        models = file.merge.models if isinstance(file.merge.models, Mapping) else {}
        kind, checkpoints = "local", [str(file.merge.base_model), *models.values()]
        where = {"device", "device_map", "max_memory"}
        backend = file.backend.model_dump(exclude={"type", *where, "engine", "vllm"})
        runtime = file.backend.model_dump(include=where, exclude_none=True)
        if file.backend.engine != "transformers":
            backend["engine"] = file.backend.engine
            runtime["vllm"] = file.backend.vllm.model_dump()
        if file.backend.dtype == "auto":
            backend["dtype"] = main_dtype(read_header(found.models.folder(str(file.merge.base_model))))
    prompts = []
    if file.merge.experts is not None:
        backend["prompts"] = file.merge.experts.prompts
        prompts.append(file.merge.experts.prompts)
    tasks = {name: resolved_task(config) for name, config in file.tasks.items()}
    data = [reference for config in file.tasks.values() for reference in hub_references(config)]
    of_hub = {path: commit for path in [*checkpoints, *data] if (commit := found.models.commit(path)) is not None}
    local = [path for path in checkpoints if path not in of_hub]
    content = {**fingerprints([*local, *prompts, *data_paths(file.tasks, root)], root), **of_hub}
    parts = {name: split_settings(section) for name, section in file.judges.items()}
    judges = {name: settings for name, (settings, _) in parts.items()}
    if judges:
        runtime["judges"] = {name: reached for name, (_, reached) in parts.items()}
    return EvaluatorDefinition(kind, "", backend, tasks, content, file.seed, judges), runtime
