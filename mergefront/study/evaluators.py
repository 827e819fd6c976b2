"""Evaluators from their description in a study's definition, so that ``resume`` can make them again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluator, FunctionEvaluator
from mergefront.study.server_backends import server_evaluator
from mergefront.study.study_file import LocalBackendSection, StudyFile


@contextmanager
def make_evaluator(
    description: Mapping[str, Any],
    space: MergeSpace,
    root: Path,
    runtime: Mapping[str, Any],
    storage: str | None = None,
) -> Iterator[Evaluator]:
    """The evaluator that ``description`` (a study's ``evaluator``) describes, until the block ends.

    Relative paths start from ``root``; ``runtime`` says where it runs ("device", "url"); the
    database at ``storage`` keeps what servers answer. Raises ``UserError``
    when it cannot be made.
    """
    kind = description["type"]
    if kind == "python":
        raise UserError(
            f"this study is scored by the Python function {description['function']}; continue it from Python by "
            "calling search(...) again with the same arguments"
        )
    if kind == "function":
        with importable(root):
            function = user_function(description["call"], root)
            yield FunctionEvaluator(function)
        return
    _refuse_changed(description, root)
    if kind == "server":
        with server_evaluator(description, space, root, runtime, storage) as evaluator:
            yield evaluator
        return
    yield _local_evaluator(description, space, root, runtime)


def local_evaluator_description(file: StudyFile, root: Path) -> dict[str, Any]:
    """What a study's definition keeps of a local backend, its tasks and the content of their files."""
    from mergefront.study.check_local import data_paths, fingerprints

    assert isinstance(file.backend, LocalBackendSection)
    models = file.merge.models if isinstance(file.merge.models, Mapping) else {}
    checkpoints = [str(file.merge.base_model), *models.values()]
    return {
        "type": "local",
        "backend": {"dtype": file.backend.dtype, **_unusual(file.backend)},
        "seed": file.seed,
        "tasks": {name: dict(config) for name, config in file.tasks.items()},
        "content": fingerprints([*checkpoints, *data_paths(file.tasks, root)], root),
    }


def _unusual(backend: LocalBackendSection) -> dict[str, Any]:
    """The local backend's other settings, where they are not the default."""
    return backend.model_dump(include={"compat", "task_vectors"}, exclude_defaults=True)


def _refuse_changed(description: Mapping[str, Any], root: Path) -> None:
    """Raises ``UserError`` when a checkpoint or data file is no longer what the study was begun with."""
    from mergefront.study.check_local import fingerprints

    for path, known in description["content"].items():
        if not (root / path).exists():
            raise UserError(f"{root / path}: it is gone, and the study needs it; put it back to continue")
        if fingerprints([path], root)[path] != known:
            raise UserError(
                f"{root / path}: its content has changed since the study was begun, so new scores could not be "
                "compared with the old; put the old content back, or begin a study of another name"
            )


def _local_evaluator(
    description: Mapping[str, Any], space: MergeSpace, root: Path, runtime: Mapping[str, Any]
) -> Evaluator:
    from mergefront.adapters.evaluator import TaskEvaluator
    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.adapters.tasks.registry import build_task

    tasks = [build_task(name, config, root, description["seed"]) for name, config in description["tasks"].items()]
    assert space.base_model is not None
    backend = LocalBackend.from_checkpoints(
        root / space.base_model,
        {name: root / path for name, path in space.models.items()},
        device=runtime.get("device", "auto"),
        dtype=description["backend"]["dtype"],
        compat_mergekit=description["backend"].get("compat") == "mergekit",
        task_vectors=description["backend"].get("task_vectors", "exact"),
    )
    return TaskEvaluator(backend, tasks)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """While entered, modules in ``folder`` can be imported."""
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def user_function(call: str, root: Path) -> Callable[[Any], Any]:
    """The callable that ``package.module:name`` names; raises ``UserError`` saying what is missing."""
    module_name, separator, name = call.partition(":")
    if not separator or not module_name or not name:
        raise UserError(f"backend.call: {call!r} must be written as package.module:name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.split(".")[0] == error.name.split(".")[0]:
            raise UserError(f"backend.call: there is no module {module_name!r} in {root} or installed") from None
        raise UserError(f"backend.call: importing {module_name!r} failed: {error}") from None
    except Exception as error:
        raise UserError(f"backend.call: importing {module_name!r} failed: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"backend.call: {module_name!r} has no function {name!r} {did_you_mean(name, public)}")
    return function  # type: ignore[no-any-return]
