"""What a user installs is what is in the repository, and it starts fast."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "optuna", "sqlalchemy", "pydantic", "httpx", "rich", "transformers", "botorch", "numpy")


def test_every_package_folder_is_installed() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for name in ("mergefront", "optimizer", "adapters", "storage"):
        prefix = "mergefront" if name == "mergefront" else f"mergefront.{name}"
        for init in (ROOT / name).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / name).parts
            found.add(".".join((prefix, *parts)))
    assert set(setup["packages"]) == found
    assert {"fused_merge.c"} == set(setup["package-data"]["mergefront.adapters.merging.task_vectors"])
    assert [path.name for path in (ROOT / "adapters").rglob("*.c")] == ["fused_merge.c"]


def test_importing_mergefront_and_its_help_load_nothing_heavy() -> None:
    for start in ("import mergefront", "import mergefront.cli", "import mergefront.optimizer.recipes.recipe"):
        script = f"import sys; {start}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
        loaded = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        ).stdout.split()
        assert loaded == [], start


def test_optimizer_imports_nothing_from_above() -> None:
    above = (
        "mergefront.adapters",
        "mergefront.storage",
        "mergefront.study",
        "mergefront.running",
        "mergefront.cli",
    )
    for path in (ROOT / "optimizer").rglob("*.py"):
        for line in path.read_text().splitlines():
            if line.strip().startswith(("from ", "import ")):
                assert not any(package in line for package in above), f"{path}: {line}"
