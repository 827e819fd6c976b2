"""Versions of the rules that a study follows, so that a change of rules never changes a study in silence.

A study stores the numbers it was started with; a study of commit 1712830 or before stores none and has 1 for each.

| number | raised when | a study with a lower number |
| --- | --- | --- |
| ``SCORING`` | the same definition would be scored differently | is scored by its own rules, or refused |
| ``SAMPLERS`` | a sampler would propose other trials | goes on with the trials that are there |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergefront.optimizer.errors import UserError

DEFAULT_EVALUATIONS = 30
"""The budget of a study whose owner names none."""
SCORING = 1
"""Rules of scoring: merging, prompts, metrics, estimates of a race's own candidate."""
OLDEST_SCORING = 1
"""The oldest rules of scoring that this version can still follow."""
SAMPLERS: Mapping[str, int] = {}
"""Versions of the samplers by name, where above 1."""

_TASK_DEFAULTS_OF_1712830: Mapping[str, Mapping[str, Any]] = {
    "jsonl": {
        "max_new_tokens": 32,
        "stop": ["\n"],
        "delimiter": " ",
        "length_normalised": False,
        "margins": False,
        "normalise": False,
        "tolerance": 0.0,
        "seconds": 5.0,
        "memory_mb": 512,
        "report_fraction": 0.5,
    },
}
"""What a task's options were where a study of commit 1712830 or before left them out."""


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored definition with the defaults of its day.

    Studies of commit 1712830 and before did not store those of tasks; mm-mo read what it could not explain as
    roughness before that was an option.
    """
    evaluator, sampler = stored["evaluator"], stored["sampler"]
    if sampler["name"] == "mm-mo":
        options = {"unexplained": "roughness", **sampler["options"]}
        stored = {**stored, "sampler": {**sampler, "options": options}}
    if "scoring" in stored or "tasks" not in evaluator:
        return dict(stored)
    tasks = {}
    for name, task in evaluator["tasks"].items():
        defaults = dict(_TASK_DEFAULTS_OF_1712830.get(task["type"], {}))
        if "report" in task:
            defaults.pop("report_fraction", None)
        tasks[name] = {**defaults, **task}
    return {**stored, "evaluator": {**evaluator, "tasks": tasks}}


def sampler_version(name: str) -> int:
    """The version of a sampler's rules."""
    return SAMPLERS.get(name, 1)


def changes_since(name: str, stored: Mapping[str, Any]) -> list[str]:
    """What a stored study's owner should know of rules that have changed since it was started, a line each.

    Raises ``UserError`` for a study that this version cannot score as it was scored before.
    """
    scoring = stored.get("scoring", 1)
    if scoring > SCORING:
        raise UserError(
            f"study {name!r} is scored by rules of version {scoring}, this mergefront knows {SCORING}; "
            "upgrade mergefront to go on with it"
        )
    if scoring < OLDEST_SCORING:
        raise UserError(
            f"study {name!r} is scored by rules of version {scoring}, which this mergefront no longer follows; go on "
            f"with the mergefront that began it, or begin a study of another name with warm_start: [{{study: {name}}}]"
        )
    lines = []
    if scoring < SCORING:
        lines.append(f"study {name!r} goes on with the rules of scoring that it was started with (version {scoring})")
    sampler = stored["sampler"]
    here = sampler_version(sampler["name"])
    then = sampler.get("version", 1)
    if then != here:
        lines.append(
            f"sampler {sampler['name']} has changed since study {name!r} was started (version {then}, now {here}); "
            "it goes on with the trials that are there"
        )
    return lines
