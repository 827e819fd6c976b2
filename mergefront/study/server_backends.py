"""Backends over HTTP in a study: their preflight, what a definition keeps of them, their evaluators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.adapters.remote.settings import Section, joined_settings, split_settings
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.study.content import data_paths, fingerprints
from mergefront.study.definition import EvaluatorDefinition, StudyDefinition
from mergefront.study.study_file import StudyFile

if TYPE_CHECKING:
    from mergefront.adapters.tasks.task import Task
    from mergefront.storage.database import Database


def server_definition(file: StudyFile, root: Path) -> tuple[EvaluatorDefinition, dict[str, Any]]:
    """What a study's definition keeps of a backend over HTTP and its tasks, and what may differ between runs."""
    from mergefront.adapters.tasks.registry import resolved_task

    assert isinstance(file.backend, Section)
    backend, runtime = split_settings(file.backend)
    tasks = {name: resolved_task(config) for name, config in file.tasks.items()}
    content = fingerprints(data_paths(file.tasks, root), root)
    return EvaluatorDefinition("server", backend=backend, tasks=tasks, content=content, seed=file.seed), runtime


def check_server(file: StudyFile, space: MergeSpace, root: Path, problems: list[str], notes: list[str]) -> None:
    """Connect and ask what the tasks will need: before the search, and for a few short requests at most."""
    from mergefront.adapters.remote.registry import backend_problems
    from mergefront.adapters.tasks.registry import build_task

    assert isinstance(file.backend, Section)
    tasks = [build_task(name, config, root, file.seed) for name, config in file.tasks.items()]
    verbs = sorted({task.verb for task in tasks})
    problems.extend(f"backend: {line}" for line in backend_problems(file.backend, space, root, verbs))
    notes.append(f"backend {file.backend.type}: answers {' and '.join(verbs) or 'with a loss'}")


@contextmanager
def server_evaluator(definition: StudyDefinition, tasks: Sequence[Task], database: Database) -> Iterator[Evaluator]:
    """The evaluator of a backend over HTTP; responses are kept in the database."""
    from mergefront.adapters.remote.registry import make_evaluator, read_settings
    from mergefront.storage.responses import DatabaseResponses

    settings = read_settings(joined_settings(dict(definition.evaluator.backend), dict(definition.runtime)))
    cache = DatabaseResponses(database)
    with make_evaluator(settings, tasks, definition.space, definition.root, cache) as evaluator:
        yield evaluator
