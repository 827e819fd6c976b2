"""Which files a harness task of one's own is made of, read from its YAML by lm-eval 0.4.13's rules, without it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mergefront.adapters.tasks.local_imports import imported_files
from mergefront.optimizer.foreign_text import file_content


def task_files(task: str, folder: Path) -> list[str]:
    """The YAML file ``task``, those that it includes, the modules beside them that it names with what these import, and
    its data files.

    Paths are relative to ``folder`` (absolute where the YAML says so) and each stands once. Files on the net are left
    out. What is missing or no YAML is left out as well, ``task`` aside: the harness says what is wrong with it.
    """
    content, read = _merged(task, folder, frozenset())
    files = (content.get("dataset_kwargs") or {}) if isinstance(content.get("dataset_kwargs"), Mapping) else {}
    # Data is beside the task's own file, whichever file names it.
    data = [
        found
        for name in _texts(files.get("data_files"))
        if "://" not in name
        for found in _existing(_beside(task, name), folder)
    ]
    return list(dict.fromkeys([task, *read, *data]))


class _Function(str):
    """What a ``!function module.name`` names."""


class _Loader(yaml.SafeLoader):
    """Reads ``!function`` as a name: nothing is imported."""


def _function_name(loader: _Loader, node: yaml.ScalarNode) -> _Function:
    return _Function(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function_name)


def _merged(name: str, folder: Path, above: frozenset[str]) -> tuple[dict[str, Any], list[str]]:
    """What a YAML file says with what it includes, and the files that this was read from, modules with them."""
    try:
        own = yaml.load(file_content(folder / name), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}, []
    if not isinstance(own, dict):
        return {}, []
    merged: dict[str, Any] = {}
    read = [name]
    for included in (_beside(name, one) for one in _texts(own.pop("include", None))):
        if included not in above | {name}:
            content, more = _merged(included, folder, above | {name})
            merged |= content
            read += more
    modules = {_beside(name, f"{said.rpartition('.')[0].replace('.', '/')}.py") for said in _functions(own)}
    own_modules = [module for module in sorted(modules) if os.path.isfile(folder / module)]
    read += [*own_modules, *imported_files(own_modules, folder)]
    return {**merged, **own}, read


def _beside(file: str, name: str) -> str:
    return os.path.normpath(Path(file).parent / name)


def _existing(name: str, folder: Path) -> list[str]:
    """The file, or the files that it is a pattern of."""
    if os.path.isfile(folder / name):
        return [name]
    found = glob.glob(name, root_dir=folder, recursive=True)
    return sorted(one for one in found if os.path.isfile(folder / one))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a YAML value, each part of it once: aliases can repeat a part without bound, or hold itself."""
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping | list) and id(one) not in seen:
            seen.add(id(one))
            waiting += reversed(list(one.values() if isinstance(one, Mapping) else one))


def _functions(value: Any) -> list[str]:
    return [text for text in _texts(value) if isinstance(text, _Function)]
