"""Evaluators from their description in a study's definition, so that ``resume`` can make them again."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.evaluation import Evaluator, FunctionEvaluator
from mergefront.optimizer.space import MergeSpace


@contextmanager
def make_evaluator(description: Mapping[str, Any], space: MergeSpace, root: Path) -> Iterator[Evaluator]:
    """The evaluator that ``description`` (a study's ``evaluator``) describes, until the block ends.

    Relative paths start from ``root``. Raises ``UserError`` when it cannot be made.
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
    yield _local_evaluator(description, space, root)


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
