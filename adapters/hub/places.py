"""Where the models of a study or a configuration lie: folders beside it, or commits in the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergefront.adapters.hub.names import HubName, hub_name
from mergefront.adapters.hub.snapshots import commit_of, fetched

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
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
        return fetched(name, self.commit(reference) or commit_of(name))

    def commit(self, reference: str) -> str | None:
        """The commit that a name on the Hub stands for here, if that is settled."""
        commit = self.commits.get(reference)
        return commit if commit is not None and _COMMIT.fullmatch(commit) else None

    def hub_name(self, reference: str) -> HubName | None:
        """The repository that a reference means; what was one when it was settled stays one."""
        return hub_name(reference, None if self.commit(reference) else self.root)
