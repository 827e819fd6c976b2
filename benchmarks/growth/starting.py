"""Commands that read a study, from their process's start to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from benchmarks.growth.rows import Row
from benchmarks.growth.studies import NAME, made

LIBRARIES = "optuna, sqlalchemy, click, rich, pydantic, yaml, numpy"
"""What every such command needs."""


def command(*arguments: str) -> Callable[[str], Callable[[], object]]:
    def ready(url: str) -> Callable[[], object]:
        code = "import sys; from mergefront.cli.application import cli; cli(sys.argv[1:])"
        given = [sys.executable, "-c", code, *arguments, NAME, "--storage", url]
        # Installed packages are compiled: a first start does it here.
        compiled = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        subprocess.run(given, stdout=subprocess.DEVNULL, check=True, env=compiled)
        return lambda: subprocess.run(given, stdout=subprocess.DEVNULL, check=True)

    return ready


def libraries(url: str) -> Callable[[], object]:
    """A process that imports ``LIBRARIES``."""
    return lambda: subprocess.run([sys.executable, "-c", f"import {LIBRARIES}"], check=True)


ROWS: Mapping[str, Row] = {
    f"{name}, from the command's start to its end (plain: the libraries imported)": Row(
        made(), command(name), 30, plain=libraries, bar="plain + 0.3"
    )
    for name in ("status", "front")
}
