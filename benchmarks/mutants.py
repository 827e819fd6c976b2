"""Whether the tests notice faults: a seeded sample of small changes to the code, each with the tests that should fail.

    python benchmarks/mutants.py [search racing mmmo ledger merging] [--mutants 60] [--seed 0] [--results FILE]

A mutant is one change of the syntax tree: a comparison, a sum or product, "and" for "or", a condition turned round, a
number, a truth value, a call left out. It is killed when one of the area's tests fails or takes ten times as long as
all do otherwise. Everything happens in a copy of the repository. Libraries are imported once: every run of tests is a
fork. A mutation tool from a package index sees none of it, because folders are mapped to packages (pyproject.toml).
"""

from __future__ import annotations

import argparse
import ast
import copy
import glob
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "torch",
    "numpy",
    "scipy.optimize",
    "scipy.stats",
    "optuna",
    "sqlalchemy",
    "pydantic",
    "hypothesis",
    "botorch",
)
LONGER = 10
"""Times what all tests take otherwise, after which a mutant is killed as one that hangs."""


@dataclass(frozen=True)
class Area:
    """Source files, and what pytest is told of the tests that cover them."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "search": Area(("optimizer/search/*.py",), ("tests/optimizer/search",)),
    "racing": Area(("optimizer/racing/*.py",), ("tests/optimizer/racing",)),
    "mmmo": Area(("optimizer/samplers/mmmo/*.py",), ("tests/optimizer/samplers/mmmo",)),
    "ledger": Area(("storage/ledger.py",), ("tests/storage/test_ledger.py", "-k", "not mysql and not postgresql")),
    "merging": Area(
        (
            "adapters/merging/task_vectors/[mrt]*.py",
            "adapters/merging/whole_models/[cdlos]*.py",
            "adapters/merging/coefficients.py",
        ),
        (
            "tests/adapters/merging/test_reference.py",
            "tests/adapters/merging/test_goldens.py",
            "tests/adapters/merging/test_spectral_methods.py",
            "tests/adapters/merging/test_compiled.py",
            "-k",
            "not compiler",
        ),
    ),
}

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of a file: its line, what stood there, what stands there now, and the whole mutated source."""

    path: str
    line: int
    before: str
    after: str
    source: str


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(source)
    for node in _nodes(tree):
        for field, value in _changes(node):
            held, before = getattr(node, field), ast.unparse(node)
            setattr(node, field, value)
            yield Mutant(path, getattr(node, "lineno", 0), before, ast.unparse(node), ast.unparse(tree))
            setattr(node, field, held)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is below it, but annotations, which say nothing at run time."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child)


def _changes(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Fields of a node with values to put there."""
    match node:
        case ast.Compare(ops=[op, *others]) if type(op) in _COMPARED:
            yield "ops", [_COMPARED[type(op)](), *others]
        case ast.BinOp(op=op) if type(op) in _COMPUTED:
            yield "op", _COMPUTED[type(op)]()
        case ast.BoolOp(op=op):
            yield "op", ast.Or() if isinstance(op, ast.And) else ast.And()
        case ast.UnaryOp(op=ast.USub()):
            yield "op", ast.UAdd()
        case ast.If(test=test) | ast.IfExp(test=test):
            yield "test", ast.UnaryOp(ast.Not(), copy.deepcopy(test))
        case ast.Constant(value=bool() as value):
            yield "value", not value
        case ast.Constant(value=int() | float() as value):
            yield "value", value + 1 if isinstance(value, int) else value * 2 or 1.0
        case ast.Expr(value=ast.Call()):
            yield "value", ast.Constant(None)


class Copy:
    """The repository in a folder of its own, laid out as the package, where one file after another is changed."""

    def __init__(self, folder: Path) -> None:
        self.root, self._layout = folder / "repository", folder / "layout"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        for name in [*filter(None, names), *glob.glob("adapters/**/*.so", root_dir=ROOT, recursive=True)]:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        package = self._layout / "mergefront"
        package.mkdir(parents=True)
        for path in [
            *(self.root / "mergefront").iterdir(),
            *map(self.root.joinpath, ("optimizer", "adapters", "storage")),
        ]:
            (package / path.name).symlink_to(path)

    def tested(self, tests: tuple[str, ...], limit: float) -> tuple[bool, float]:
        """Whether tests pass within ``limit`` seconds, and the seconds of processor time that they took."""
        child = os.fork()
        if child == 0:
            self._run(tests, limit)
        _, status, usage = os.wait4(child, 0)
        return os.waitstatus_to_exitcode(status) == 0, usage.ru_utime + usage.ru_stime

    def _run(self, tests: tuple[str, ...], limit: float) -> None:
        """Never returns."""
        os.setsid()
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(0, signal.SIGKILL))
        signal.alarm(int(limit) + 1)
        os.chdir(self.root)
        output = os.open(os.devnull, os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path[:0] = [str(self._layout), str(self.root)]
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": f"{self._layout}:{self.root}", "PYTHONDONTWRITEBYTECODE": "1"}
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))


def measure(area: Area, count: int, seed: int, place: Copy) -> dict[str, Any]:
    """Sample mutants of an area and run its tests on each."""
    files = sorted(name for pattern in area.sources for name in glob.glob(pattern, root_dir=ROOT))
    every = [mutant for name in files for mutant in mutants_of(name, (ROOT / name).read_text())]
    sample = random.Random(seed).sample(every, min(count, len(every)))
    started = time.monotonic()
    passed, cost = place.tested(area.tests, 3600)
    if not passed:
        raise SystemExit(f"these tests fail without any mutant: {' '.join(area.tests)}")
    limit, survivors = LONGER * (time.monotonic() - started), []
    for mutant in sample:
        path = place.root / mutant.path
        path.write_text(mutant.source)
        survived, seconds = place.tested(area.tests, limit)
        shutil.copy(ROOT / mutant.path, path)
        cost += seconds
        said = f"{mutant.path}:{mutant.line}: {mutant.before[:150]!r} -> {mutant.after[:150]!r}"
        print("survived" if survived else "killed", said, f"{seconds:.0f} s", flush=True)
        if survived:
            survivors.append(said)
    return {"of": len(every), "mutants": len(sample), "survivors": survivors, "processor_seconds": round(cost)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default: all")
    parser.add_argument("--mutants", type=int, default=60, help="of every area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Copy(Path(folder))
        for area in arguments.areas or AREAS:
            made[area] = measure(AREAS[area], arguments.mutants, arguments.seed, place)
            killed = made[area]["mutants"] - len(made[area]["survivors"])
            print(
                f"{area}: {killed} of {made[area]['mutants']} killed, {made[area]['processor_seconds']} s", flush=True
            )
    if arguments.results:
        arguments.results.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
