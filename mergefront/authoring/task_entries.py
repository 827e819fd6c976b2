"""A task's entry in a first study file: a metric from its items' fields, or a name of the LM evaluation harness."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.adapters.tasks.items import parse_item
from mergefront.adapters.tasks.metrics.known_metrics import METRICS
from mergefront.adapters.tasks.metrics.numbers import number_faults
from mergefront.adapters.tasks.task_types import problems_of
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.foreign_text import file_content

_LOOKED_AT = 200
"""Items whose fields tell the metric."""
_MOST_ITEMS = 200
"""Search items that a first study asks of a task: beyond them a search learns little more per hour."""


@dataclass(frozen=True)
class TaskEntry:
    """A task by its name, its entry in the study file, and why it is so, a comment for each key that was guessed."""

    name: str
    entry: Mapping[str, Any]
    why: Mapping[str, str]


def task_entries(tasks: Sequence[str], folder: Path, chat: bool) -> list[TaskEntry]:
    """An entry for each file or name. ``chat`` says that the base has a chat template.

    Raises ``StudyFileError`` with all that is wrong with files and names.
    """
    found: list[TaskEntry] = []
    problems: list[str] = []
    for task in tasks:
        try:
            entry = _of_file(task, folder, chat) if _is_file(task) else _of_harness(task, folder, chat)
            if entry.name in (one.name for one in found):
                raise UserError("another task has this name already")
            problems += [f"--task {task}: {problem}" for problem in problems_of(entry.entry, folder)]
            found.append(entry)
        except UserError as error:
            problems.append(f"--task {task}: {error}")
    if problems:
        raise StudyFileError("the tasks", problems)
    return found


def _is_file(task: str) -> bool:
    return task.endswith((".jsonl", ".json", ".parquet")) or (
        os.path.isfile(task) and not task.endswith((".yaml", ".yml"))
    )


def _of_harness(task: str, folder: Path, chat: bool) -> TaskEntry:
    entry: dict[str, Any] = {"type": "lm_eval", "task": task}
    if task.endswith((".yaml", ".yml")):
        if not os.path.isfile(task):
            raise UserError("there is no such file")
        entry["task"] = os.path.relpath(task, folder)
    return TaskEntry(_name(task), entry, {"task": "of the LM evaluation harness"})


def _of_file(task: str, folder: Path, chat: bool) -> TaskEntry:
    try:
        lines = [line for line in file_content(Path(task)).decode("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"the file cannot be read: {getattr(error, 'strerror', None) or error}") from None
    metric, why = told_metric(lines[:_LOOKED_AT])
    entry: dict[str, Any] = {"type": "jsonl", "path": os.path.relpath(task, folder), "metric": metric}
    reasons = {"path": f"{len(lines)} items, half of them for the report", "metric": why}
    if len(lines) // 2 > _MOST_ITEMS:
        entry["search_items"] = _MOST_ITEMS
        reasons["search_items"] = f"of {len(lines) - len(lines) // 2}; more cost time and tell less and less"
    return TaskEntry(_name(task), entry, reasons)


def _name(task: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", Path(task).stem if _is_file(task) or task.endswith((".yaml", ".yml")) else task)


def told_metric(lines: Sequence[str]) -> tuple[str, str]:
    """A metric that every item has the keys of, and what it was told by. Raises ``UserError`` where there is none."""
    import json

    items: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} is not valid JSON ({error}); write one JSON object a line") from None
        if not isinstance(item, dict):
            raise UserError(f'line {number} is no JSON object such as {{"prompt": ..., "answer": ...}}')
        items.append(item)
    if not items:
        raise UserError("the file has no items")
    shared = set.intersection(*(set(item) for item in items))
    for metric, told in (
        ("loglikelihood", "every item has choices: the likeliest must be the right one"),
        ("code", "every item has tests, which a program of the model must pass"),
        ("numeric", "every answer is a number"),
        ("exact_match", "answers are texts; f1, loss and others: docs/evaluation.md"),
        ("loss", "items are texts: nats per token, less is better"),
    ):
        if any(shared >= set(keys) for keys in METRICS[metric].required) and _scores(metric, items):
            return metric, told
    fields = ", ".join(name for name, _ in Counter(name for item in items for name in item).most_common(8))
    raise UserError(
        f"no metric knows items with the fields {fields or '(none)'}; name them prompt and answer, or prompt, choices "
        "and answer, or text (docs/evaluation.md)"
    )


def _scores(metric: str, items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a metric could score the items that are looked at."""
    try:
        parsed = [parse_item({**item, "image": None}, METRICS[metric].required) for item in items]
    except ValueError:
        return False
    return metric != "numeric" or not any(number_faults(parsed))
