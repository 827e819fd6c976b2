"""What a user installs is what is in the repository, and it starts fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

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
    sources = {source for module in setup["ext-modules"] for source in module["sources"]}
    assert sources == {str(path.relative_to(ROOT)) for path in (ROOT / "adapters").rglob("*.c")}


MERGE = """
import torch
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.recipe import Recipe
base, expert = {"x": torch.zeros(9)}, {"x": torch.arange(9.0)}
engine = MergeEngine(base, {"a": expert})
live = {"x": torch.empty(9)}
engine.merge_into(Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 0.5}, "base"), live)
assert torch.equal(live["x"], expert["x"] / 2)
print(engine.__class__.__module__, sys.modules[engine.__class__.__module__].__file__, engine.compiled)
"""


@pytest.mark.long
@pytest.mark.parametrize("compiler", [True, False], ids=["with a compiler", "without"])
def test_a_wheel_made_of_the_source_distribution_merges(tmp_path: Path, compiler: bool) -> None:
    """With a compiler the wheel brings the kernel, and needs none where it is installed; without, torch merges."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    nothing = {**os.environ, "PATH": str(tmp_path / "empty"), "PYTHONPATH": ""}

    def python(*arguments: str, **options: Any) -> str:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    setup = "from setuptools import setup; setup()"
    python("-c", setup, "-q", "sdist", "--dist-dir", str(tmp_path), cwd=tmp_path / "source")
    (source,) = tmp_path.glob("*.tar.gz")
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    environment = {**os.environ, "PYTHONPATH": ""} if compiler else nothing
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    python(*pip, "wheel", *offline, "--wheel-dir", str(tmp_path), str(source), env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    place = str(tmp_path / "installed")
    python(*pip, "install", "--no-deps", "--no-index", "--target", place, str(wheel), env=nothing)
    said = python("-c", f"import sys; sys.path.insert(0, {place!r}){MERGE}", env=nothing, cwd=tmp_path)
    assert place in said and said.split()[-1] == str(compiler)


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
