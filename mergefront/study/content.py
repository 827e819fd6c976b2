"""The files that a study's scores depend on, and their content as hashes.

Commands that read a study import this; what tasks and tokenizers are is imported where files are looked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import file_content

_WHOLE_FILE_UP_TO = 64 * 1024 * 1024
_SAMPLE = 1024 * 1024


def fingerprints(paths: Iterable[str], root: Path) -> dict[str, str]:
    """Content hashes of files and checkpoint folders, by path; what a study's scores depend on.

    Files above 64 MiB are hashed by size, first and last MiB, which tells checkpoints apart at the
    price of their headers.
    """
    return {path: _fingerprint(root / path) for path in sorted(set(paths))}


def is_unchanged(path: str, root: Path, known: str) -> bool:
    """Whether a path has the content whose hash a study stored; older ones were of a folder's most common files."""
    here = root / path
    return os.path.exists(here) and known in (_fingerprint(here), _fingerprint(here, whole=False))


def _fingerprint(path: Path, whole: bool = True) -> str:
    digest = hashlib.sha256()
    files = {file.name: file for file in _content_files(path)}
    if whole and path.is_dir():
        from mergefront.adapters.merging.output.files import tokenizer_files

        # What tokenizers and their templates need beside the most common files.
        files |= {name: file for name, file in tokenizer_files(path).items() if name not in files}
    for name, file in files.items():
        digest.update(f"{name} {file.stat().st_size}\n".encode())
        digest.update(_content(file))
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The content hash of one file of code: 16 hexadecimal characters."""
    return hashlib.sha256(file_content(path)).hexdigest()[:16]


def data_paths(tasks: Mapping[str, Mapping[str, Any]], root: Path) -> list[str]:
    """Every file here that tasks are made of, relative to ``root``: data, what harness tasks of one's own name, and the
    modules of functions of one's own with those that they import."""
    from mergefront.adapters.tasks.conversations import template_file
    from mergefront.adapters.tasks.items import image_paths
    from mergefront.adapters.tasks.lm_eval.files import task_files
    from mergefront.adapters.tasks.local_imports import imported_files, module_files
    from mergefront.adapters.tasks.task_types import FILE_OPTIONS, hub_references

    of_hub = {reference for config in tasks.values() for reference in hub_references(config)}
    named = [str(config[key]) for config in tasks.values() for key in FILE_OPTIONS if config.get(key) is not None]
    named = [path for path in named if path not in of_hub]
    harness = [str(config["task"]) for config in tasks.values() if config.get("type") == "lm_eval"]
    local = [str(path) for config in tasks.values() for path in dict(config.get("data_files") or {}).values()]
    local = [path for path in local if path not in of_hub]
    own = [file for task in harness if task.endswith((".yaml", ".yml")) for file in task_files(task, root)]
    folders = [(path, os.path.dirname(path)) for path in named]
    images = [os.path.join(folder, image) for path, folder in folders for image in image_paths(root / path)]
    read = [path for config in tasks.values() for path in _texts(config.get("files", ()))]
    chats = [
        one
        for config in tasks.values()
        for one in (config.get("chat"), {"template": config.get("apply_chat_template")})
    ]
    templates = [file for chat in chats if (file := template_file(chat))]
    functions = [str(config.get(key, "")).partition(":") for config in tasks.values() for key in ("metric", "call")]
    modules = [file for module, colon, _ in functions if colon for file in module_files(module, root)]
    return [*named, *templates, *images, *local, *own, *read, *modules, *imported_files(modules, root)]


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _content_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: it is a device, a pipe or a socket; put a file there")
    kept = (".safetensors", ".json", ".jsonl", ".model", ".txt")
    return sorted(file for file in path.iterdir() if file.suffix in kept and file.is_file())


def _content(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE_FILE_UP_TO:
            return hashlib.file_digest(stream, "sha256").digest()
        head = stream.read(_SAMPLE)
        stream.seek(size - _SAMPLE)
        return hashlib.sha256(head + stream.read(_SAMPLE)).digest()
