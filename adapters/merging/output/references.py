"""References to models as a mergekit configuration writes them: a path, or ``model+lora``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class ModelReference(NamedTuple):
    """A whole model, and the LoRA on it where there is one."""

    model: str
    lora: str | None = None

    def __str__(self) -> str:
        return self.model if self.lora is None else f"{self.model}+{self.lora}"


def read_reference(text: str, folders: Sequence[Path]) -> ModelReference:
    """A reference taken apart, every part of it absolute where it exists in one of ``folders``.

    A ``+`` in the path of something that exists belongs to the path.
    """
    whole = _found(text, folders)
    if whole is not None:
        return ModelReference(whole)
    pairs = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "+"]
    for pair in pairs:
        model, lora = (_found(part, folders) for part in pair)
        if model is not None and lora is not None:
            return ModelReference(model, lora)
    if not pairs:
        return ModelReference(text)
    model, lora = (_found(part, folders) or part for part in pairs[0])
    return ModelReference(model, lora)


def _found(path: str, folders: Sequence[Path]) -> str | None:
    # os.path answers False where Path raises: for a path that is too long or has an unknown user in it.
    candidates = (folder / os.path.expanduser(path) for folder in folders)
    found = next((candidate for candidate in candidates if path and os.path.exists(candidate)), None)
    return None if found is None else str(found.resolve())
