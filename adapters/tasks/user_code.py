"""Functions of the user's own, named as ``package.module:name``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError, did_you_mean


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """While entered, modules in ``folder`` can be imported."""
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def user_function(call: str, folder: Path, label: str = "backend.call") -> Callable[..., Any]:
    """The callable that ``call`` names, in ``folder`` or installed; ``label`` says whose it is.

    Raises ``UserError`` saying what is missing.
    """
    module_name, _, name = call.partition(":")
    if not module_name or not name:
        raise UserError(f"{label}: {call!r} must be written as package.module:name")
    try:
        _forget_namesakes(module_name, folder.resolve())
        with importable(folder):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and module_name.split(".")[0] == missing.split(".")[0]:
            raise UserError(f"{label}: there is no module {module_name!r} in {folder} or installed") from None
        raise UserError(f"{label}: importing {module_name!r} failed: {described(error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"{label}: {module_name!r} has no function {name!r} {did_you_mean(name, public)}")
    return function  # type: ignore[no-any-return]


def described(error: BaseException) -> str:
    """What code of others raised, in a line; ``sys.exit`` too, which must not end our process."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = ""
    return f"{type(error).__name__}: {said or 'no message'}"


def _forget_namesakes(module_name: str, folder: Path) -> None:
    """Unloads a module of this name that came from elsewhere where ``folder`` has its own: a copy of a study's folder
    must not be scored by the original's code."""
    top = module_name.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    has_own = (folder / f"{top}.py").is_file() or (folder / top / "__init__.py").is_file()
    if has_own and file is not None and not Path(file).resolve().is_relative_to(folder):
        for name in [name for name in sys.modules if name.partition(".")[0] == top]:
            del sys.modules[name]
        importlib.invalidate_caches()
