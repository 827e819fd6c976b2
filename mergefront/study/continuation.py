"""Whether a definition continues a stored study, and where a stored study's files are."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.optimizer.errors import UserError
from mergefront.storage.database import sqlite_path
from mergefront.storage.studies import StudyRecord
from mergefront.study.content import file_hash, is_unchanged
from mergefront.study.definition import StudyDefinition
from mergefront.study.rules import completed

_MAY_CHANGE = ("runtime", "stop", "scoring", "allow", "served", "learned")
_ABSENT = object()


def check_continues(definition: StudyDefinition, record: StudyRecord) -> list[str]:
    """What differs between today's defaults and what the stored study goes on with, a line each.

    Keys that the definition leaves out take the stored values. Raises ``UserError``, showing the difference, when
    any other key differs.
    """
    new = json.loads(json.dumps(definition.to_json()))
    old: dict[str, Any] = json.loads(json.dumps(completed(record.definition)))
    for key in _MAY_CHANGE:
        new.pop(key, None)
        old.pop(key, None)
    for side in (new, old):
        side["sampler"].pop("version", None)
    content = new["evaluator"].get("content", {})
    for path, known in old["evaluator"].get("content", {}).items():
        if content.get(path) not in (None, known) and is_unchanged(path, definition.root, known):
            content[path] = known
    if old["evaluator"]["type"] == "server":
        # Studies of commit 625a2cb and before kept nothing of the LoRAs that are read here.
        for path in {*definition.space.models.values()} - {*old["evaluator"].get("content", {})}:
            content.pop(path, None)
    notes = []
    for path in sorted(definition.left_out):
        default, stored = _at(new, path), _at(old, path)
        if default is _ABSENT or default == stored:
            continue
        _put(new, path, stored)
        if stored is not _ABSENT:
            notes.append(
                f"{'.'.join(path)} is {_short(stored)}, as the study was started; the default is {_short(default)} now"
            )
    changes = differences(old, new)
    if changes:
        remedy = "give the new one another name"
        if definition.compares:
            remedy = f"compare anew after 'mergefront delete {shlex.quote(record.name)}'"
        raise UserError(
            f"study {record.name!r} exists already with another definition; {remedy}, or undo the change:\n"
            + "\n".join(f"    {change}" for change in changes)
        )
    return notes


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, a line each, with the path to it."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}, key=str):
            path = f"{where}.{key}" if where else str(key)
            if key not in new:
                found.append(f"{path}: was {_short(old[key])}, is now missing")
            elif key not in old:
                found.append(f"{path}: was missing, is now {_short(new[key])}")
            else:
                found.extend(differences(old[key], new[key], path))
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for index, (was, now) in pairs for line in differences(was, now, f"{where}[{index}]")]
    return [] if old == new else [f"{where}: was {_short(old)}, is now {_short(new)}"]


def stored_root(root: Path, storage: str) -> str:
    """``root`` as the database keeps it: relative to an SQLite file, so that both can move together."""
    database = sqlite_path(storage)
    if database is None:
        return str(root.resolve())
    return os.path.relpath(root.resolve(), database.resolve().parent)


def root_of(record: StudyRecord, storage: str, given: Path | None = None) -> Path:
    """The folder from which a stored study's relative paths start.

    ``given`` overrides what is stored. A root that an earlier version stored as an absolute path counts only where
    the folder of the SQLite file does not hold the study's files with the content that they had. Raises
    ``UserError`` for a folder that is not there.
    """
    if given is not None:
        if not given.is_dir():
            raise UserError(f"--root {given}: there is no such folder; name the folder of the study file")
        return given.resolve()
    database = sqlite_path(storage)
    stored = Path(record.root)
    if database is None:
        return stored
    beside = database.resolve().parent
    if not stored.is_absolute():
        return (beside / stored).resolve()
    return beside if _holds_the_files(beside, record.definition) else stored


def _holds_the_files(folder: Path, stored: Mapping[str, Any]) -> bool:
    """Whether a folder holds every file that a stored study depends on, with the content that it had."""
    evaluator = stored["evaluator"]
    places = ModelPlaces(folder, evaluator.get("content", {}))
    content = {path: known for path, known in places.commits.items() if places.commit(path) is None}
    method_files = stored.get("method_files", {})
    known = [*content, *method_files]
    if evaluator["type"] == "function":
        module = folder.joinpath(*evaluator["call"].partition(":")[0].split("."))
        if not module.with_suffix(".py").is_file() and not (module / "__init__.py").is_file():
            return False
    elif not known:
        return False
    if not all((folder / path).exists() for path in known):
        return False
    return all(is_unchanged(path, folder, digest) for path, digest in content.items()) and all(
        file_hash(folder / path) == digest for path, digest in method_files.items()
    )


def _at(content: Any, path: Iterable[str]) -> Any:
    for key in path:
        if not isinstance(content, Mapping) or key not in content:
            return _ABSENT
        content = content[key]
    return content


def _put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    if value is _ABSENT:
        content.pop(path[-1], None)
    else:
        content[path[-1]] = value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
