"""Tasks by the ``type`` of their entry. No model library is imported here.

A study file's ``tasks`` section becomes tasks through ``build_task``; ``problems_of`` says beforehand
what is wrong with an entry, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.tasks.encoders.classify import ClassifyOptions, read_classify_task
from mergefront.adapters.tasks.encoders.embed import EmbedOptions, read_embed_task
from mergefront.adapters.tasks.jsonl import JsonlOptions, idle_options, read_jsonl_task
from mergefront.adapters.tasks.lm_eval.task import LmEvalOptions, read_lm_eval_task
from mergefront.adapters.tasks.metrics.metric_spec import CHAT_DEFAULTS
from mergefront.adapters.tasks.python_task import PythonOptions, read_python_task
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.sections import Section

FILE_OPTIONS = ("path", "report", "queries", "corpus", "qrels")
"""Options of tasks that name a file of items."""


@dataclass(frozen=True)
class TaskType:
    """A kind of task that a study file can name.

    ``options`` is the model of its entry besides ``type``. ``read`` makes the task from its name, its options, the
    folder of the study file and the seed, and lists what is wrong with them; the task is None, or not to be used, when
    there is a problem. ``idle`` names the options that a sound entry holds and has no use for.
    """

    options: type[Section]
    read: Callable[[str, Mapping[str, Any], Path, int], tuple[Task | None, list[str]]]
    idle: Callable[[Mapping[str, Any]], list[str]] = lambda _: []


TASK_TYPES: Mapping[str, TaskType] = {
    "jsonl": TaskType(JsonlOptions, read_jsonl_task, idle_options),
    "lm_eval": TaskType(LmEvalOptions, read_lm_eval_task),
    "classify": TaskType(ClassifyOptions, read_classify_task),
    "embed": TaskType(EmbedOptions, read_embed_task),
    "python": TaskType(PythonOptions, read_python_task),
}


def build_task(
    name: str, config: Mapping[str, Any], folder: Path, seed: int = 0, places: ModelPlaces | None = None
) -> Task:
    """The task of one entry ``{type: jsonl, path: ..., metric: ..., ...}``; paths are relative to ``folder``.

    ``places`` says at which commits data sets on the Hub are taken (default: the newest). Raises ``UserError`` with
    every problem that ``problems_of`` would list.
    """
    task, problems = read_task(name, config, folder, seed, places)
    if task is None or problems:
        raise UserError("\n".join(f"task {name!r}: {problem}" for problem in problems))
    return task


def resolved_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """A sound task entry with the default of every option that it leaves out."""
    return {**task_defaults(config), **config}


def task_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a sound entry leaves out, as JSON; a null says something as ``delimiter`` alone."""
    fields = TASK_TYPES[config["type"]].options.model_fields
    values = {name: field.default for name, field in fields.items() if name not in config and not field.is_required()}
    if config.get("chat") or isinstance(config.get("chat"), Mapping):
        values |= {name: value for name, value in CHAT_DEFAULTS.items() if name in values}
    if "report" in config:
        del values["report_fraction"]
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value is not None or name == "delimiter"
    }


def idle_options_of(config: Mapping[str, Any]) -> list[str]:
    """The options of a sound task entry that it has no use for."""
    return TASK_TYPES[config["type"]].idle(config)


def problems_of(config: Any, folder: Path, seed: int = 0, places: ModelPlaces | None = None) -> list[str]:
    """What is wrong with one task entry, a line each (``data/maths.jsonl:17: ...``); empty when it is sound.

    Reads the task's files and asks no model.
    """
    return read_task("", config, folder, seed, places)[1]


def hub_references(config: Mapping[str, Any]) -> list[str]:
    """The names of data on the Hub in a task entry, as they are written."""
    by_split = config.get("data_files")
    named = [*map(config.get, FILE_OPTIONS), *(by_split.values() if isinstance(by_split, Mapping) else ())]
    return [one for one in named if isinstance(one, str) and one.startswith("hf://")]


def read_task(
    name: str, config: Any, folder: Path, seed: int = 0, places: ModelPlaces | None = None
) -> tuple[Task | None, list[str]]:
    """What ``build_task`` and ``problems_of`` say, for the price of one reading; the task is not to be used where there
    is a problem."""
    if not isinstance(config, Mapping):
        return None, [f"is {config!r}; it must be a mapping such as {{type: jsonl, path: ..., metric: exact_match}}"]
    if "type" not in config:
        return None, [f"the key 'type' is missing; it is one of {', '.join(TASK_TYPES)}"]
    kind = TASK_TYPES.get(config["type"]) if isinstance(config["type"], str) else None
    if kind is None:
        return None, [f"unknown task type {config['type']!r} {did_you_mean(str(config['type']), TASK_TYPES)}"]
    options = {key: value for key, value in config.items() if key != "type"}
    try:
        return kind.read(name, _with_files(options, places or ModelPlaces(folder)), folder, seed)
    except UserError as error:
        return None, [str(error)]


def _with_files(options: Mapping[str, Any], places: ModelPlaces) -> dict[str, Any]:
    """The options with data on the Hub as files of this machine. Raises ``UserError``."""
    here = {reference: places.file(reference) for reference in hub_references(options)}

    def placed(value: Any) -> Any:
        return here.get(value, value) if isinstance(value, str) else value

    found = {key: placed(value) for key, value in options.items()}
    if isinstance(options.get("data_files"), Mapping):
        found["data_files"] = {split: placed(value) for split, value in options["data_files"].items()}
    return found
