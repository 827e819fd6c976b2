"""A first study file as text: what was seen of the models and tasks, and why each line says what it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mergefront.adapters.checkpoints.dtypes import main_dtype
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task_types import build_task
from mergefront.authoring.estimate import Machine, memory_needs, seconds_of_evaluation, this_machine
from mergefront.authoring.models import Models, described
from mergefront.authoring.task_entries import TaskEntry
from mergefront.formatting import duration, size

_FEWEST, _MOST = 30, 100
"""Evaluations of a first study."""
NO_TASK = """\
# MISSING: what merges are to be good at. Fill in one task or more, and name them as objectives:
# tasks:
#   maths: {type: jsonl, path: maths.jsonl, metric: exact_match}    # lines such as {"prompt": "3 + 4 =", "answer": "7"}
#   arc: {type: lm_eval, task: arc_easy}                            # any task of the LM evaluation harness
# objectives: [maths, arc]
"""


def drafted(models: Models, tasks: Sequence[TaskEntry], output: Path) -> str:
    """The text of the study file ``output``; without ``tasks`` it says what is missing."""
    machine = this_machine()
    dtype = main_dtype(models.header)
    lines = [
        "# Written by mergefront init; change what you like. All keys: mergefront schema, and docs/ of mergefront.",
        f"study: {_study(output, models.base_reference)}",
        "merge:",
        f"  # {described(models.header)}",
        f"  base_model: {_plain(models.base_reference)}",
        "  models:",
    ]
    for name, reference in models.references.items():
        line = f"    {_plain(name)}: {_plain(reference)}"
        lines.append(f"{line}    # {described(models.experts[name].header, models.header)}")
    if models.places.to_fetch:
        lines.append(f"  # a run fetches {size(sum(models.places.to_fetch.values()))} from the Hub")
    if models.tokenizer_source is not None:
        lines.append(f"  tokenizer_source: {models.tokenizer_source}    # the models' vocabularies differ")
    count = len(models.references)
    lines += [
        "  method: task_arithmetic    # base + weight x (expert - base), summed; others: docs/reference/methods.md",
        "  space:",
        "    weight: [0, 1]    # searched, one for each expert",
        f"    granularity: global    # coefficients in all: {count}; with {{blocks: 4}}, by depth, {4 * count}",
        *_backend(models, machine, dtype),
    ]
    evaluations = min(max(_FEWEST, count + 3 + 8 * count), _MOST)
    if tasks:
        lines.append("tasks:")
        for task in tasks:
            lines.append(f"  {_plain(task.name)}:")
            lines += [
                f"    {key}: {_plain(value)}" + (f"    # {task.why[key]}" if key in task.why else "")
                for key, value in task.entry.items()
            ]
        lines.append(f"objectives: [{', '.join(_plain(task.name) for task in tasks)}]")
    else:
        lines += NO_TASK.splitlines()
    lines += [
        "search:",
        "  sampler: mm-mo",
        f"  evaluations: {evaluations}    # {count + 3} of them anchors: base, experts, averages",
        "  batch: 1    # with several workers (mergefront worker): how many",
        *(_hours(models, machine, tasks, output.parent, evaluations) if tasks else ()),
    ]
    return "\n".join(lines) + "\n"


def _backend(models: Models, machine: Machine, dtype: str) -> list[str]:
    """Where the merges are made and asked, and whether they fit there."""
    needs = memory_needs(models, machine.device, dtype)
    fits = needs.live + needs.exact < machine.free
    device, compressed = "auto", False
    if not fits and machine.device == "cuda" and needs.live > machine.free:
        device = "cpu"
    elif not fits:
        compressed = needs.live + needs.int8 < machine.free
    room = "" if fits else "; what does not fit is read from disk for each merge" if not compressed else ""
    lines = [
        "backend:",
        "  type: local",
        f"  device: {device}    # here {machine.device if device == 'auto' else 'the GPU is too small'}",
        f"  dtype: auto    # merges are rounded to it: {dtype}, the base's",
        f"  # memory: {size(needs.live)} for the live model, {size(needs.exact)} for base and experts; "
        f"{size(machine.free)} are free{room}",
    ]
    if compressed:
        lines.append(f"  task_vectors: int8    # {size(needs.int8)} instead of {size(needs.exact)}")
    return lines


def _hours(models: Models, machine: Machine, tasks: Sequence[TaskEntry], folder: Path, evaluations: int) -> list[str]:
    """How long the search takes, and by what that was worked out."""
    questions: list[Question] = []
    for task in tasks:
        built = build_task(task.name, task.entry, folder)
        questions += built.questions(built.items("search"))
    seconds = seconds_of_evaluation(models, machine, questions)
    return [
        f"  # about {duration(seconds * evaluations)} ({evaluations} evaluations x {duration(seconds)}): "
        f"{len(questions)} questions each, at {machine.operations / 1e12:.2g} TFLOP/s and "
        f"{machine.copied / 1e9:.2g} GB/s measured here",
        "# racing: true    # asks about a fifth of the items, docs/how-to/racing.md",
    ]


def _study(output: Path, base: str) -> str:
    """A name: the file's, or the base's for a file that is called as all are."""
    last = re.split(r"[/\\]", base.removeprefix("hf://").partition("@")[0].rstrip("/"))[-1]
    stem = f"{last}-merges" if output.stem == "study" else output.stem
    return re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "merges"


def _plain(value: Any) -> str:
    """A value as YAML writes it within a line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
