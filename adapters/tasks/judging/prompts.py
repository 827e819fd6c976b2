"""What a judge is asked, and the strict reading of what it says.

A verdict is the last line of an answer: ``score: 7``, ``better: A``, or a JSON object with that key. Anything else is
none; nothing is guessed from the words around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from mergefront.adapters.tasks.judging.options import JudgeOptions

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_LINE = re.compile(r"[\s*_`>#-]*(?P<key>score|better)[\s*_`]*:[\s*_`]*(?P<value>[^\s*_`]+?)\.?[\s*_`]*", re.IGNORECASE)
"""The last line, whatever marks of emphasis it has."""
_CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def grading_prompt(options: JudgeOptions, task: str, accepted: Sequence[str], answer: str) -> str:
    """The request for a score of one answer."""
    assert options.range is not None
    low, high = options.range
    return _joined(
        "Grade the answer to the task below by the rubric.",
        ("Rubric", options.rubric),
        ("Task", task),
        ("Accepted answers", "\n".join(accepted)),
        ("Answer", answer),
        "Give your reasons in a few sentences. Then end with one line, and nothing after it:\n"
        f"score: N\nwhere N is a number from {low:g} (worst) to {high:g} (best).",
    )


def comparing_prompt(options: JudgeOptions, task: str, accepted: Sequence[str], first: str, second: str) -> str:
    """The request for the better of two answers, the first of which is called A."""
    return _joined(
        "Compare the two answers to the task below by the rubric. Their order says nothing about them.",
        ("Rubric", options.rubric),
        ("Task", task),
        ("Accepted answers", "\n".join(accepted)),
        ("Answer A", first),
        ("Answer B", second),
        "Give your reasons in a few sentences. Then end with one line, and nothing after it:\n"
        "better: X\nwhere X is A, B or tie.",
    )


def reminded(prompt: str, attempt: int) -> str:
    """The prompt as it is put again after ``attempt`` answers that had no verdict; another text, as equal ones would
    get equal answers."""
    if not attempt:
        return prompt
    return f"{prompt}\n\nThe last line must have exactly that form. (Request {attempt + 1}.)"


def read_score(text: str, options: JudgeOptions) -> float | None:
    """A score from 0 (the worst) to 1; None where the text has no verdict in the range."""
    assert options.range is not None
    low, high = options.range
    value = _verdict(text, "score")
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return None
    return (float(value) - low) / (high - low)


def read_choice(text: str) -> float | None:
    """1 where A is better, 0 where B is, 0.5 of a tie; None where the text has no verdict."""
    value = _verdict(text, "better")
    return _CHOICES.get(value.casefold()) if isinstance(value, str) else None


def _verdict(text: str, key: str) -> Any:
    lines = text.strip().splitlines()
    for part in (lines[-1], text) if lines else ():
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found.get(key)
    said = _LINE.fullmatch(lines[-1]) if lines else None
    return said["value"] if said is not None and said["key"].casefold() == key else None


def _joined(*parts: str | tuple[str, str]) -> str:
    """Parts one after the other, those with a title as blocks of their own; blocks without a text are left out."""
    shown = [part if isinstance(part, str) else f"[{part[0]}]\n{part[1].strip()}" for part in parts if part[1]]
    return "\n\n".join(shown)
