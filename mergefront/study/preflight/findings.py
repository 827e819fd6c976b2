"""What a preflight looks at and what it found so far."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mergefront.adapters.hub.names import hub_name
from mergefront.adapters.hub.places import Preview
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.recipes.stacks import Modalities
from mergefront.study.study_file import StudyFile


@dataclass
class Findings:
    """A study file under preflight, the folder that it lies in, its models as far as they are looked at, and what was
    found."""

    file: StudyFile
    root: Path
    models: Preview
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What a run says as well."""
    modalities: Modalities = field(default_factory=Modalities)
    items: dict[str, int] = field(default_factory=dict)
    """How many search items each task has."""
    expert_layers: list[int] = field(default_factory=list)
    """The layers of one mixture that have experts, where those are merged."""
    frame: Path | None = None
    """The model whose class and configuration the merges have, where that is not the base."""
    reader: Reader = field(default_factory=Reader)
    """How the backend reads the prompts of tasks."""

    @contextmanager
    def catch(self, where: str = "", hint: str = "") -> Iterator[None]:
        """A ``UserError`` becomes a problem, with ``where`` before what it says and ``hint`` behind it."""
        try:
            yield
        except StudyFileError as error:
            self.problems.extend(f"{where}{problem}{hint}" for problem in error.problems)
        except UserError as error:
            self.problems.append(f"{where}{error}{hint}")

    def hint_at(self, path: str) -> str:
        """What paths are relative to, where there is nothing at this one."""
        # pathlib raises where a name is too long to exist
        if os.path.exists(self.root / path) or path.startswith("hf:") or hub_name(path, self.root) is not None:
            return ""
        readme = self.root / "README.md"
        return " (paths are relative to the study file" + (f"; see {readme})" if readme.exists() else ")")
