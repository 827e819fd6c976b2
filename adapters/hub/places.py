"""Where the models and data of a study or a configuration lie: beside it, or at commits in the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from mergefront.adapters.hub.names import HubName, data_name, hub_name
from mergefront.adapters.hub.snapshots import cached, commit_of, fetched, fetched_file, headers_only, snapshot

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile(PathLike[str]):
    """A file in the Hub's cache that is called as the user wrote it."""

    reference: str
    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.reference


@dataclass
class ModelPlaces:
    """``root`` is the folder that relative paths start from. ``commits`` says, by the reference as it is written, which
    commit a name on the Hub stands for; other entries are not looked at. A name without one means its newest commit."""

    root: Path
    commits: Mapping[str, str] = field(default_factory=dict)

    def folder(self, reference: str) -> Path:
        """The model's folder or file, fetched if need be; where there is none, the path as it is written.

        Raises ``UserError`` for a name on the Hub that cannot be had.
        """
        name = self.hub_name(reference)
        if name is None:
            return self.root / reference
        return fetched(name, self._commit_of(reference, name))

    def file(self, reference: str) -> str | HubFile:
        """A file of data, fetched if need be; a path as it is written. Raises ``UserError`` for a name on the Hub that
        cannot be had."""
        name = data_name(reference)
        return reference if name is None else HubFile(reference, fetched_file(name, self._commit_of(reference, name)))

    def _commit_of(self, reference: str, name: HubName) -> str:
        return self.commit(reference) or commit_of(name)

    def commit(self, reference: str) -> str | None:
        """The commit that a name on the Hub stands for here, if that is settled."""
        commit = self.commits.get(reference)
        return commit if commit is not None and _COMMIT.fullmatch(commit) else None

    def pinned(self, reference: str) -> str | None:
        """``org/name@commit``, as mergekit reads it too; None for a path, and for a folder of a repository."""
        name, commit = self.hub_name(reference), self.commit(reference)
        return None if name is None or commit is None or name.folder else f"{name.repository}@{commit}"

    def settled(self, references: Iterable[str]) -> ModelPlaces:
        """These places with a commit for each name on the Hub among ``references``. Raises ``UserError``."""
        settled = dict(self.commits)
        for reference in references:
            name = self.hub_name(reference)
            if name is not None:
                settled[reference] = self.commit(reference) or commit_of(name)
        return ModelPlaces(self.root, settled)

    def hub_name(self, reference: str) -> HubName | None:
        """The repository that a reference means; what was one when it was settled stays one."""
        return hub_name(reference, None if self.commit(reference) else self.root)


class Preview(ModelPlaces):
    """Models as a check looks at them: what the cache does not have is fetched without its weights.

    ``commits`` (see ``ModelPlaces``) grows by the names on the Hub that were looked at; ``to_fetch`` has the bytes that
    each will need.
    """

    commits: dict[str, str]

    def __init__(self, root: Path, commits: Mapping[str, str] | None = None) -> None:
        super().__init__(root, dict(commits or {}))
        self.to_fetch: dict[str, int] = {}
        self._folders: dict[tuple[HubName, str], Path] = {}
        self._holding: TemporaryDirectory[str] | None = None

    def folder(self, reference: str) -> Path:
        """The model's folder, or one like it without the numbers; a path as ``ModelPlaces`` has it."""
        name = self.hub_name(reference)
        if name is None:
            return super().folder(reference)
        commit = self._commit_of(reference, name)
        key = replace(name, revision=None), commit
        if key not in self._folders:
            self._folders[key] = self._look(reference, name, commit)
        return self._folders[key]

    def _commit_of(self, reference: str, name: HubName) -> str:
        self.commits[reference] = super()._commit_of(reference, name)
        return self.commits[reference]

    def _look(self, reference: str, name: HubName, commit: str) -> Path:
        whole = cached(name, commit)
        if whole is not None:
            return whole / name.folder
        found = snapshot(name, commit)
        self.to_fetch[reference] = found.missing_bytes()
        if self._holding is None:
            self._holding = TemporaryDirectory(prefix="mergefront-headers-")
        folder = Path(self._holding.name) / str(len(self._folders))
        return headers_only(found, folder)
