"""A task's entry in a first study file: a metric from its items' fields, or a name of the LM evaluation harness."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.tasks.items import parse_item
from mergefront.adapters.tasks.metrics.known_metrics import METRICS
from mergefront.adapters.tasks.metrics.metric_spec import CHAT_DEFAULTS, MetricOptions
from mergefront.adapters.tasks.metrics.numbers import is_a_number, number_faults
from mergefront.adapters.tasks.records import read_records, with_fields
from mergefront.adapters.tasks.task_types import problems_of
from mergefront.optimizer.errors import StudyFileError, UserError

_HUB = "hf://"
_LOOKED_AT = 200
"""Items whose fields tell the metric."""
_MOST_ITEMS = 200
"""Search items that a first study asks of a task: beyond them a search learns little more per hour."""


@dataclass(frozen=True)
class Asked:
    """What of a model decides how it is asked: whether it has a chat template, and its ``longest`` text in tokens."""

    chat_template: bool
    longest: int | None


@dataclass(frozen=True)
class TaskEntry:
    """A task by its name, its entry in the study file, and why it is so, a comment for each key that was guessed."""

    name: str
    entry: Mapping[str, Any]
    why: Mapping[str, str]


def task_entries(tasks: Sequence[str], folder: Path, base: Asked) -> list[TaskEntry]:
    """An entry for each file or name, for models like ``base``.

    Raises ``StudyFileError`` with all that is wrong with files and names.
    """
    found: list[TaskEntry] = []
    problems: list[str] = []
    for task in tasks:
        try:
            entry = _of_file(task, folder, base) if _is_file(task) else _of_harness(task, folder, base)
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
    return (
        task.startswith(_HUB)
        or task.endswith((".jsonl", ".json", ".parquet"))
        or (os.path.isfile(task) and not task.endswith((".yaml", ".yml")))
    )


def _of_harness(task: str, folder: Path, base: Asked) -> TaskEntry:
    if os.path.isdir(task):
        raise UserError("this is a folder; name a file of items in it")
    entry: dict[str, Any] = {"type": "lm_eval", "task": task}
    if task.endswith((".yaml", ".yml")):
        if not os.path.isfile(task):
            raise UserError("there is no such file")
        entry["task"] = os.path.relpath(task, folder)
    reasons = {"task": "of the LM evaluation harness"}
    if base.chat_template:
        entry["apply_chat_template"] = True
        reasons["apply_chat_template"] = "the base has one; without this line prompts are continued as they stand"
    return TaskEntry(_name(task), entry, reasons)


def _of_file(task: str, folder: Path, base: Asked) -> TaskEntry:
    try:
        lines = [line for line in read_records(Path(ModelPlaces(Path()).file(task))) if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"the file cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = told_metric(lines[:_LOOKED_AT])
    half = len(lines) - len(lines) // 2
    entry: dict[str, Any] = {
        "type": "jsonl",
        "path": task if task.startswith(_HUB) else os.path.relpath(task, folder),
        "metric": found.metric,
    }
    reasons = {"path": f"{len(lines)} items, half of them for the report", "metric": found.why}
    if found.fields:
        entry["fields"] = dict(found.fields)
        reasons["fields"] = "the keys of items, by column of the file"
    if found.has_messages or (base.chat_template and METRICS[found.metric].verb == "generate"):
        entry["chat"] = True
        reasons["chat"] = "by the base's chat template; without this line prompts are continued as they stand"
        if found.has_messages:
            reasons["chat"] = "the items are conversations, put by the base's chat template"
    usual = CHAT_DEFAULTS["max_new_tokens"] if "chat" in entry else MetricOptions.model_fields["max_new_tokens"].default
    if METRICS[found.metric].verb == "generate" and base.longest is not None and usual > base.longest // 4:
        entry["max_new_tokens"] = max(base.longest // 4, 1)
        reasons["max_new_tokens"] = f"the model reads {base.longest} tokens at most, prompt and answer together"
    if half > _MOST_ITEMS:
        entry["search_items"] = _MOST_ITEMS
        reasons["search_items"] = f"of {half}; more cost time and tell less and less"
    return TaskEntry(_name(task), entry, reasons)


def _name(task: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", Path(task).stem if _is_file(task) or task.endswith((".yaml", ".yml")) else task)


@dataclass(frozen=True)
class Told:
    """What items tell: a metric and why, and where keys of items are other columns of the file, which."""

    metric: str
    why: str
    fields: Mapping[str, str]
    has_messages: bool


_METRICS = {
    "loglikelihood": "every item has choices: the likeliest must be the right one",
    "code": "every item has tests, which a program of the model must pass",
    "numeric": "every answer is a number",
    "exact_match": "answers are texts; f1, loss, judge and others: docs/reference/metrics.md",
    "loss": "items are texts: nats per token, less is better",
}
"""Metrics that items are tried with, in this order, and what it says of them that one fits."""
_OTHER_NAMES = {
    "prompt": ("question", "instruction", "input", "problem", "query"),
    "answer": ("output", "response", "target", "solution", "completion", "label", "gold"),
    "choices": ("options", "endings"),
    "tests": ("test",),
}
"""What data sets call the keys of items."""


def told_metric(lines: Sequence[bytes]) -> Told:
    """A metric that every item fits, by its own keys or by columns of other names. Raises ``UserError`` without one."""
    records: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} is not valid JSON ({error}); write one JSON object a line") from None
        if not isinstance(record, dict):
            raise UserError(f'line {number} is no JSON object such as {{"prompt": ..., "answer": ...}}')
        records.append(record)
    if not records:
        raise UserError("the file has no items")
    shared = set.intersection(*(set(record) for record in records))
    fields = {
        key: next((name for name in (key, *others) if name in shared), "")
        for key, others in {**_OTHER_NAMES, "messages": (), "text": ()}.items()
    }
    fields = {key: name for key, name in fields.items() if name and not (key == "prompt" and "messages" in shared)}
    renamed = any(key != name for key, name in fields.items())
    items = [with_fields(record, fields) for record in records]
    for metric, why in _METRICS.items():
        if _scores(metric, items):
            return Told(metric, why, fields if renamed else {}, "messages" in fields)
    seen = ", ".join(name for name, _ in Counter(name for record in records for name in record).most_common(8))
    raise UserError(
        f"no metric fits items with the fields {seen or '(none)'}; name them prompt (or messages) and answer, or "
        "prompt, choices and answer, or text, or give fields: {prompt: COLUMN, ...} in the entry (docs/how-to/tasks.md)"
    )


def _scores(metric: str, items: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a metric could score the items that are looked at."""
    try:
        parsed = [parse_item({**item, "image": None}, METRICS[metric].required) for item in items]
    except ValueError:
        return False
    if metric != "numeric":
        return True
    return all(is_a_number(answer) for item in parsed for answer in item.answers) and not any(number_faults(parsed))
