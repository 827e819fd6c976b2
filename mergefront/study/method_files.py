"""Merge methods of the user's own, from Python files that a study file names (``merge.method_files``)."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mergefront.optimizer.errors import UserError
from mergefront.study.content import file_hash


def load_method_files(files: Iterable[str], root: Path) -> dict[str, str]:
    """Run each file (relative to ``root``), which registers its methods; returns content hashes by path.

    A file that was run before with this content is not run again. Raises ``UserError`` for a file that is
    missing or fails.
    """
    hashes = {}
    for file in files:
        path = root / file
        try:
            hashes[file] = file_hash(path)
        except OSError as error:
            raise UserError(f"method file {path}: it cannot be read ({error.strerror}); put it there") from None
        _run(path.resolve(), hashes[file])
    return hashes


def load_known_method_files(known: Mapping[str, str], root: Path) -> None:
    """The files of a stored study; raises ``UserError`` as well when one has changed since the study was begun."""
    for file, content in load_method_files(known, root).items():
        if content != known[file]:
            raise UserError(
                f"method file {root / file}: its content has changed since the study was begun, so new merges could "
                "not be compared with the old; put the old content back, or begin a study of another name"
            )


def _run(path: Path, content: str) -> None:
    place = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    name = f"mergefront_method_file_{place}_{content}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"method file {path}: it must be a Python file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, (Exception, SystemExit)):
            raise
        from mergefront.adapters.tasks.user_code import described

        raise UserError(f"method file {path}: running it failed: {described(error)}") from None
