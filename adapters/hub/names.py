"""Which references name a repository on the Hub, and which a folder on this machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mergefront.optimizer.errors import UserError

_SCHEME = "hf://"
_DATA = "hf://datasets/"
_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]+))?")
_REVISION = r"refs/(?:convert|pr)/[^/]+|[^/]+"
_NAME_AND_FILE = re.compile(rf"({_PART}/{_PART})(?:@({_REVISION}))?/(.+)")
_NAME_AND_FOLDER = re.compile(rf"({_PART}/{_PART})(?:@([^/]+))?(?:/(.+))?")


@dataclass(frozen=True)
class HubName:
    """A repository, the revision asked for (a branch, a tag or a commit; None: the newest), and a folder in it, or the
    file that is meant of a data set."""

    repository: str
    revision: str | None = None
    folder: str = ""
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        start = "datasets/" if self.kind == "dataset" else ""
        return start + self.repository + (f"@{self.revision}" if self.revision else "")


def hub_name(reference: str, root: Path | None) -> HubName | None:
    """The repository that a reference in a study file means, or None for a path.

    ``hf://org/name@revision/folder`` always means the Hub. ``org/name`` or ``org/name@revision`` does unless there is
    such a folder, or ``org`` is a folder beside the study file: then the model in it is missing. ``./x`` and whatever
    else is no such name is a path. Without a ``root`` no folder is looked for. Raises ``UserError`` for a malformed
    ``hf://``.
    """
    if reference.startswith(_DATA):
        raise UserError(f"{reference!r} names a data set on the Hub, and a model is needed")
    if reference.startswith(_SCHEME):
        whole = _NAME_AND_FOLDER.fullmatch(reference.removeprefix(_SCHEME))
        if whole is None or ".." in (whole[3] or "").split("/"):
            raise UserError(f"{reference!r} names nothing on the Hub; write hf://org/name@revision/folder")
        return HubName(whole[1], whole[2], (whole[3] or "").strip("/"))
    named = _NAME.fullmatch(reference)
    if named is None or (root is not None and _is_path(reference, root)):
        return None
    return HubName(named[1], named[2])


def data_name(reference: str) -> HubName | None:
    """The file of a data set that ``hf://datasets/org/name@revision/path`` means, or None for a path on this machine.

    Raises ``UserError`` for a malformed ``hf://``.
    """
    if not reference.startswith(_SCHEME):
        return None
    whole = _NAME_AND_FILE.fullmatch(reference.removeprefix(_DATA)) if reference.startswith(_DATA) else None
    if whole is None or ".." in whole[3].split("/"):
        raise UserError(f"{reference!r} names no data on the Hub; write hf://datasets/org/name@revision/path/of/file")
    return HubName(whole[1], whole[2], whole[3], "dataset")


def repository_name(text: str) -> HubName:
    """A repository to write to. Raises ``UserError`` for what is no ``org/name``."""
    named = _NAME.fullmatch(text)
    if named is None or named[2]:
        raise UserError(f"{text!r} is no repository on the Hub; write it as org/name")
    return HubName(named[1])


def _is_path(reference: str, root: Path) -> bool:
    """Whether there is such a file or folder, or at least the folder that it would lie in."""
    # os.path answers where a name is too long to exist, pathlib raises.
    return os.path.exists(root / reference) or os.path.isdir(root / reference.partition("/")[0])
