"""Backends over HTTP in a study: their preflight, what a definition keeps of them, their evaluators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mergefront.adapters.remote.settings import Section, joined_settings, split_settings
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.study.study_file import StudyFile


def server_description(file: StudyFile, root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a study's definition keeps of a backend over HTTP and its tasks, and what may differ between runs."""
    from mergefront.study.check_local import data_paths, fingerprints

    assert isinstance(file.backend, Section)
    backend, runtime = split_settings(file.backend)
    description = {
        "type": "server",
        "backend": backend,
        "seed": file.seed,
        "tasks": {name: dict(config) for name, config in file.tasks.items()},
        "content": fingerprints(data_paths(file.tasks, root), root),
    }
    return description, runtime


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
def server_evaluator(
    description: Mapping[str, Any], space: MergeSpace, root: Path, runtime: Mapping[str, Any], storage: str | None
) -> Iterator[Evaluator]:
    """The evaluator of a backend over HTTP; responses are kept in the database at ``storage``."""
    from mergefront.adapters.remote.registry import make_evaluator, read_settings
    from mergefront.adapters.tasks.registry import build_task
    from mergefront.storage.database import Database
    from mergefront.storage.responses import DatabaseResponses

    settings = read_settings(joined_settings(dict(description["backend"]), dict(runtime)))
    tasks = [build_task(name, config, root, description["seed"]) for name, config in description["tasks"].items()]
    with ExitStack() as stack:
        cache = None
        if storage is not None:
            database = Database(storage)
            stack.callback(database.close)
            cache = DatabaseResponses(database)
        yield stack.enter_context(make_evaluator(settings, tasks, space, root, cache))
