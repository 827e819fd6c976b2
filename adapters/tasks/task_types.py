"""Tasks by the ``type`` of their entry. No model library is imported here.

A study file's ``tasks`` section becomes tasks through ``build_task``; ``problems_of`` says beforehand
what is wrong with an entry, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.adapters.tasks import jsonl, python_task
from mergefront.adapters.tasks.jsonl import idle_options, jsonl_defaults, read_jsonl_task
from mergefront.adapters.tasks.lm_eval import task as lm_eval_task
from mergefront.adapters.tasks.lm_eval.task import lm_eval_defaults, read_lm_eval_task
from mergefront.adapters.tasks.options import Option
from mergefront.adapters.tasks.python_task import python_defaults, read_python_task
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import UserError, did_you_mean


@dataclass(frozen=True)
class TaskType:
    """A kind of task that a study file can name.

    ``read`` makes the task from its name, its options, the folder of the study file and the seed, and
    lists what is wrong with them; the task is None, or not to be used, when there is a problem. ``defaults`` are the
    options that a sound entry leaves out, with their values, and ``idle`` names those that it holds and has no use for.
    """

    read: Callable[[str, Mapping[str, Any], Path, int], tuple[Task | None, list[str]]]
    defaults: Callable[[Mapping[str, Any]], dict[str, Any]]
    options: Sequence[Option]
    idle: Callable[[Mapping[str, Any]], list[str]] = lambda _: []


TASK_TYPES: Mapping[str, TaskType] = {
    "jsonl": TaskType(read_jsonl_task, jsonl_defaults, jsonl.OPTIONS, idle_options),
    "lm_eval": TaskType(read_lm_eval_task, lm_eval_defaults, lm_eval_task.OPTIONS),
    "python": TaskType(read_python_task, python_defaults, python_task.OPTIONS),
}


def build_task(name: str, config: Mapping[str, Any], folder: Path, seed: int = 0) -> Task:
    """The task of one entry ``{type: jsonl, path: ..., metric: ..., ...}``; paths are relative to ``folder``.

    Raises ``UserError`` with every problem that ``problems_of`` would list.
    """
    task, problems = _read(name, config, folder, seed)
    if task is None or problems:
        raise UserError("\n".join(f"task {name!r}: {problem}" for problem in problems))
    return task


def resolved_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """A sound task entry with the default of every option that it leaves out."""
    return {**TASK_TYPES[config["type"]].defaults(config), **config}


def idle_options_of(config: Mapping[str, Any]) -> list[str]:
    """The options of a sound task entry that it has no use for."""
    return TASK_TYPES[config["type"]].idle(config)


def problems_of(config: Any, folder: Path, seed: int = 0) -> list[str]:
    """What is wrong with one task entry, a line each (``data/maths.jsonl:17: ...``); empty when it is sound.

    Reads the task's files and asks no model.
    """
    return _read("", config, folder, seed)[1]


def _read(name: str, config: Any, folder: Path, seed: int) -> tuple[Task | None, list[str]]:
    if not isinstance(config, Mapping):
        return None, [f"is {config!r}; it must be a mapping such as {{type: jsonl, path: ..., metric: exact_match}}"]
    if "type" not in config:
        return None, [f"the key 'type' is missing; it is one of {', '.join(TASK_TYPES)}"]
    kind = TASK_TYPES.get(config["type"]) if isinstance(config["type"], str) else None
    if kind is None:
        return None, [f"unknown task type {config['type']!r} {did_you_mean(str(config['type']), TASK_TYPES)}"]
    return kind.read(name, {key: value for key, value in config.items() if key != "type"}, folder, seed)
