"""Which files of one's own a module imports, read from its source: nothing is run."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergefront.optimizer.foreign_text import file_content

_MOST_FILES = 1000


def imported_files(modules: Sequence[str], folder: Path) -> list[str]:
    """Files that Python ``modules`` import, directly or through each other, without the modules themselves.

    Paths are relative to ``folder``, as ``modules`` are. A name is looked for beside the module that imports it and in
    ``folder``; what is in neither is installed and left out. Imports inside functions count, names that are put
    together at run time do not. At most 1,000 files are read; what is no Python imports nothing.
    """
    found: dict[str, None] = dict.fromkeys(os.path.normpath(module) for module in modules)
    waiting = list(found)
    while waiting and len(found) < _MOST_FILES:
        module = waiting.pop(0)
        for file in _imported(module, folder):
            if file not in found:
                found[file] = None
                waiting.append(file)
    return [file for file in found if file not in {os.path.normpath(module) for module in modules}]


def _imported(module: str, folder: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file_content(folder / module))
    except (OSError, ValueError, SyntaxError, RecursionError):
        return
    beside = os.path.dirname(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from module_files(alias.name, folder, [beside, ""])
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            where = [beside, ""] if not node.level else [os.path.join(beside, *[".."] * (node.level - 1))]
            for alias in node.names:
                yield from module_files(f"{package}.{alias.name}".lstrip("."), folder, where)


def module_files(name: str, folder: Path, where: Sequence[str] = ("",)) -> Iterator[str]:
    """The files that importing a dotted name runs, each package on the way and the module, looked for in the folders
    ``where`` of ``folder``."""
    parts = name.split(".")
    for base in where:
        for length in range(1, len(parts) + 1):
            path = os.path.normpath(os.path.join(base, *parts[:length]))
            for file in (f"{path}.py", os.path.join(path, "__init__.py")):
                if os.path.isfile(folder / file):
                    yield file
