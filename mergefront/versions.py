"""Which versions an evaluation was made with."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

_PACKAGES = ("mergefront", "optuna", "botorch", "torch", "transformers", "peft", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that scores depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
