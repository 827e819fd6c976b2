"""Rows of a file of data with keys of text and numbers, every problem named by file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mergefront.adapters.tasks.items import capped
from mergefront.adapters.tasks.records import read_records

Made = TypeVar("Made")


@dataclass(frozen=True)
class Rows:
    """What a file holds: sound objects by their identity, in its order, and the problems of the others."""

    rows: Mapping[str, Any]
    problems: tuple[str, ...]


def read_rows(path: Path, label: str, parse: Callable[[Mapping[str, Any]], tuple[str, Made]]) -> Rows:
    """Read a file of JSON lines or Parquet; never raises for what is in it.

    ``parse`` makes an identity and a value of an object, or raises ``ValueError`` with what is wrong with it;
    ``label`` names the file in problems.
    """
    try:
        records = read_records(path)
    except FileNotFoundError:
        return Rows({}, (f"{label}: there is no such file",))
    except (OSError, ValueError) as error:
        return Rows({}, (f"{label[:200]}: cannot be read ({getattr(error, 'strerror', None) or error})",))
    rows: dict[str, Any] = {}
    lines: dict[str, int] = {}
    problems: list[str] = []
    for number, line in enumerate(records, start=1):
        if not line.strip():
            continue
        try:
            name, made = parse(_object(line))
        except ValueError as error:
            problems.append(f"{label}:{number}: {error}")
            continue
        if name in rows:
            problems.append(f"{label}:{number}: repeats line {lines[name]}; remove one of them")
            continue
        rows[name], lines[name] = made, number
    if not rows and not problems:
        problems.append(f"{label}: is empty; write one JSON object a line")
    return Rows(rows, capped(problems, label))


def text_of(content: Mapping[str, Any], *keys: str) -> str:
    """The text under the first of ``keys`` that is there; raises ``ValueError`` for none, and for anything else."""
    key = next((key for key in keys if key in content), None)
    if key is None:
        raise ValueError(f"the key {keys[0]!r} is missing")
    value = content[key]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is {value!r:.60}; it must be a text that is not empty")
    return value


def number_of(content: Mapping[str, Any], key: str) -> float:
    """The finite number under ``key``; raises ``ValueError``."""
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise ValueError(f"{key!r} is {value!r:.60}; it must be a number")
    return float(value)


def content_hash(*parts: Any) -> str:
    """The identity of an item: a hash of what it asks (16 hexadecimal characters)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def shared_rows(search: Rows, report: Rows, labels: Sequence[str]) -> list[str]:
    """Why two files are no two splits: items that are in both."""
    both = [name for name in report.rows if name in search.rows]
    return [f"{labels[1]}: has {len(both)} items of {labels[0]}; remove them from one of the files"] if both else []


def _object(line: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError("is no JSON object")
    return content
