"""Whether the tests notice faults: a seeded sample of small changes to the code, each with the tests that should fail.

    python benchmarks/mutants.py [ledger merging racing search mmmo] [--mutants 60] [--seed 0] [--again]

A mutant is one change of the syntax tree: a comparison, a sum or product, "and" for "or", a condition turned round, a
number, a truth value, a call left out. It is killed when a test of its area fails or takes ten times as long as before.
Only tests that execute the changed statement are run, the quickest first: which these are is traced once for an area. A
statement that runs in another process or as a module is imported is not traced: the former may make a mutant survive
that a test would kill, the latter has every test of the area run. The sample is drawn by the text of the changed lines,
so that other lines may come and go. Mutants that change nothing that anybody sees are named with the reason in
equivalent_mutants.yaml. Every verdict is a line of the file of results: an interrupted run goes on, and ``--again``
looks at the survivors once more. Everything happens in a copy of the repository. Every run of tests is a fork of a
process that has imported libraries, code and tests: it exchanges the changed function's code, so that nothing is
imported again unless the change is outside functions. A mutation tool from a package index sees none of it, because
folders are mapped to packages (pyproject.toml).
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import glob
import hashlib
import importlib
import inspect
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
import yaml

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
LONGER, AT_LEAST = 10, 20
"""A mutant hangs whose test takes so many times as long as before, and so many seconds more."""
IMPORTED = ""
"""In the place of a test's name: statements of modules and classes, which run as they are imported."""


LEFT_OUT = "not mysql and not postgresql and not compiler"
"""Tests of servers and of what the compiler makes."""
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")


@dataclass(frozen=True)
class Area:
    """Source files, the folders or files of tests that cover them, and words in names of slow tests.

    Slow tests are not run: what only they notice counts as survived.
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    slow: tuple[str, ...] = ()


_MERGING = "tests/adapters/merging"
AREAS = {
    "ledger": Area(("storage/ledger.py",), ("tests/storage/test_ledger.py", "tests/optimizer/search/test_turns.py")),
    "merging": Area(
        (
            "adapters/merging/task_vectors/[mrt]*.py",
            "adapters/merging/whole_models/[cdlos]*.py",
            "adapters/merging/coefficients.py",
        ),
        (
            f"{_MERGING}/test_reference.py",
            f"{_MERGING}/test_goldens.py",
            f"{_MERGING}/test_spectral_methods.py",
            f"{_MERGING}/test_compiled.py",
            f"{_MERGING}/test_properties.py",
            f"{_MERGING}/test_by_hand.py",
        ),
        ("both_kernels", "optmerge_is_where", "streamed", "compressed_task", "lora_folders", "permuting"),
    ),
    "racing": Area(
        ("optimizer/racing/*.py",),
        ("tests/optimizer/racing",),
        ("every_sampler", "interrupted_race", "search_pays", "as_good_as_a_rival", "stated_confidence"),
    ),
    "search": Area(
        ("optimizer/search/*.py",),
        ("tests/optimizer/search", "tests/mergefront/running/test_ask_tell.py"),
        ("simplex", "corner_that_cannot"),
    ),
    "mmmo": Area(
        ("optimizer/samplers/mmmo/*.py",),
        ("tests/optimizer/samplers/mmmo",),
        (
            "hypervolume_grows",
            "new_process_continues",
            "search_on_botorch",
            "same_seed_gives",
            "order_in_which_a_round",
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
    """One change of a file: the first and last line of its statement, what stood there and stands there now."""

    path: str
    lines: tuple[int, int]
    before: str
    after: str
    nth: int
    """Of the mutants that read the same, because the line is in the file more than once."""
    source: str
    original: str

    @property
    def name(self) -> str:
        return f"{self.path}: {self.before!r} -> {self.after!r}" + f" ({self.nth})" * (self.nth > 1)


def mutants_of(path: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree, seen = ast.parse(source), Counter[tuple[str, str]]()
    original = ast.unparse(tree)
    for statement, node in _nodes(tree, tree):
        for field, value in _changes(node):
            held = getattr(node, field)
            setattr(node, field, value)
            changed = ast.unparse(tree)
            setattr(node, field, held)
            both = zip(original.splitlines(), changed.splitlines(), strict=False)
            before, after = next((one.strip(), other.strip()) for one, other in both if one != other)
            seen[before, after] += 1
            yield Mutant(path, _extent(statement), before, after, seen[before, after], changed, source)


def _extent(statement: Any) -> tuple[int, int]:
    """Lines of a statement, of one that holds others (a loop, a function) those of its head."""
    body = getattr(statement, "body", None) or getattr(statement, "cases", None)
    if not body:
        return statement.lineno, statement.end_lineno
    first = getattr(body[0], "lineno", None) or body[0].pattern.lineno
    return statement.lineno, max(statement.lineno, first - 1)


def _nodes(node: ast.AST, statement: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """A node and what is below it, each after its statement, but annotations, which say nothing at run time."""
    statement = node if isinstance(node, ast.stmt) else statement
    yield statement, node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child, statement)


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


_BROKEN = 70
_SETTINGS = ("-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception", "-m", "")


def _codes(source: str | CodeType) -> Iterator[CodeType]:
    """A module's code and that of all functions and classes in it, outer ones first."""
    code = compile(source, "", "exec") if isinstance(source, str) else source
    yield code
    for held in code.co_consts:
        if isinstance(held, CodeType):
            yield from _codes(held)


def is_exchangeable(mutant: Mutant) -> bool:
    """Whether only code of functions changes, not what runs as modules and classes are imported."""
    both = zip(_codes(ast.unparse(ast.parse(mutant.original))), _codes(mutant.source), strict=True)
    return all(_own(one) == _own(other) for one, other in both if not one.co_flags & inspect.CO_OPTIMIZED)


def _own(code: CodeType) -> tuple[object, ...]:
    """What a module or class executes itself."""
    return code.co_code, code.co_names, [repr(held) for held in code.co_consts if not isinstance(held, CodeType)]


def _place_of(code: CodeType) -> tuple[object, ...]:
    return code.co_qualname, *code.co_positions()


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
        self._functions: dict[str, list[FunctionType]] = {}

    def enter(self) -> None:
        """Makes this process import the copy, and what it starts."""
        os.chdir(self.root)
        sys.path[:0] = [str(self._layout), str(self.root)]
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": f"{self._layout}:{self.root}", "PYTHONDONTWRITEBYTECODE": "1"}

    def import_all(self, tests: Sequence[str]) -> None:
        """Imports tests and the code that they test."""
        with redirect_stdout(io.StringIO()):
            pytest.main(["--collect-only", *_SETTINGS, *tests])
        for function in (found for found in gc.get_objects() if type(found) is FunctionType):
            self._functions.setdefault(os.path.realpath(function.__code__.co_filename), []).append(function)
        gc.freeze()  # a collection in a fork would look at all of it

    def exchange(self, mutant: Mutant) -> None:
        """Gives the functions of a file that is imported the code of a mutant."""
        path = self.root / mutant.path
        both = zip(_codes(mutant.original), _codes(mutant.source), strict=True)
        new = {_place_of(code): changed for code, changed in both}
        for function in self._functions.get(os.path.realpath(path), ()):  # none of what tests import later
            function.__code__ = new[_place_of(function.__code__)]

    def run(
        self, tests: Sequence[str], plugin: object, slow: Sequence[str] = (), exchanged: Mutant | None = None
    ) -> tuple[bool, float]:
        """Whether tests pass but slow ones, and the seconds of processor time that they took."""
        child = os.fork()
        if child == 0:
            try:
                self._run(tests, plugin, slow, exchanged)  # never returns
            finally:  # nor may an error of ours, which would tidy up what the parent needs
                os._exit(_BROKEN)
        _, status, usage = os.wait4(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(status) == _BROKEN:
            raise RuntimeError("a run of tests could not begin")
        return os.waitstatus_to_exitcode(status) == 0, usage.ru_utime + usage.ru_stime

    def _run(self, tests: Sequence[str], plugin: object, slow: Sequence[str], exchanged: Mutant | None) -> None:
        os.setsid()
        output = os.open(os.devnull, os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if exchanged is not None:
            self.exchange(exchanged)
        kept = " and not ".join((LEFT_OUT, *slow))
        os._exit(int(pytest.main(["-x", "-k", kept, *_SETTINGS, *tests], plugins=[plugin])))


class Traced:
    """Watches which lines of some files each test executes."""

    def __init__(self, folder: Path, files: Sequence[str], result: Path) -> None:
        self._names = {os.path.realpath(folder / name): name for name in files}
        self._known: dict[str, str | None] = {}
        self._lines: dict[str, dict[str, set[int]]] = {}
        self._test, self._result, self._took = IMPORTED, result, Counter[str]()

    def pytest_sessionstart(self) -> None:
        threading.settrace(self._called)
        sys.settrace(self._called)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid
        sys.settrace(self._called)  # a test may have set another
        self._lines.setdefault(nodeid, {})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        of = {test: {name: sorted(lines) for name, lines in found.items()} for test, found in self._lines.items()}
        self._result.write_text(json.dumps([of, self._took]))

    def _called(self, frame: Any, event: str, argument: Any) -> Callable[..., Any] | None:
        path = frame.f_code.co_filename
        if path not in self._known:
            self._known[path] = self._names.get(os.path.realpath(path))
        name = self._known[path]
        if name is None:
            return None
        test = self._test if frame.f_code.co_flags & inspect.CO_OPTIMIZED else IMPORTED
        lines = self._lines.setdefault(test, {}).setdefault(name, set())
        lines.add(frame.f_lineno)

        def line(frame: Any, event: str, argument: Any) -> Callable[..., Any]:
            lines.add(frame.f_lineno)
            return line

        return line


class Ordered:
    """Runs some tests of those that there are, in order; writes the seconds that each took, or ends one that hangs."""

    def __init__(self, tests: Sequence[str], seconds: dict[str, float], result: Path | None = None) -> None:
        self._place = {test: place for place, test in enumerate(tests)}
        self._seconds, self._result, self._took = seconds, result, Counter[str]()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self._place), key=lambda item: self._place[item.nodeid]
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if nodeid in self._seconds:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(LONGER * self._seconds[nodeid]) + AT_LEAST)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        signal.alarm(0)
        if self._result is not None:
            self._result.write_text(json.dumps(self._took))


@dataclass(frozen=True)
class Tests:
    """The tests of an area: the lines that each executes, by file, and its seconds."""

    lines: dict[str, dict[str, set[int]]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant) -> list[str]:
        """Those that execute the statement of a mutant, the quickest first; all for what is executed by an import."""
        changed = set(range(mutant.lines[0], mutant.lines[1] + 1))
        runs = {test for test, lines in self.lines.items() if changed & lines.get(mutant.path, set())}
        return [test for test in sorted(self.seconds, key=self.seconds.__getitem__) if test in runs or IMPORTED in runs]


def trace(area: Area, files: Sequence[str], place: Copy) -> Tests:
    """Run the tests of an area, watched."""
    result = place.root.parent / "result.json"
    passed, _ = place.run(area.tests, Traced(place.root, files, result), area.slow)
    if not passed:
        raise SystemExit(f"these tests fail without any mutant: {' '.join(area.tests)}")
    found, seconds = json.loads(result.read_text())
    return Tests({test: {name: set(of) for name, of in held.items()} for test, held in found.items()}, seconds)


def timed(area: Area, tests: Tests, place: Copy) -> Tests:
    """Run them as they are on mutants, in any other order: they must pass too."""
    result = place.root.parent / "result.json"
    shuffled = sorted(tests.seconds, key=lambda test: hashlib.sha256(test.encode()).digest())
    if not place.run(area.tests, Ordered(shuffled, {}, result))[0]:
        raise SystemExit(f"these tests fail without any mutant, in another order: {' '.join(area.tests)}")
    return Tests(tests.lines, json.loads(result.read_text()))


def sample_of(area: Area, count: int, seed: int) -> tuple[int, list[Mutant]]:
    """How many mutants an area has, and a sample of them."""
    files = sorted(name for pattern in area.sources for name in glob.glob(pattern, root_dir=ROOT))
    every = [mutant for name in files for mutant in mutants_of(name, (ROOT / name).read_text())]
    drawn = sorted(every, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.name}".encode()).digest())
    return len(every), drawn[:count]


def measure(area: Area, sample: Sequence[Mutant], place: Copy) -> Iterator[tuple[Mutant, str, float]]:
    """Mutants with what became of them, and the seconds of processor time that it took.

    Imports the code in this process after those that change what is imported.
    """
    tests = trace(area, sorted({mutant.path for mutant in sample}), place)
    imported = [mutant for mutant in sample if not is_exchangeable(mutant)]
    for mutant in imported:
        yield mutant, *_verdict(mutant, tests, place, None)
    place.import_all(area.tests)
    tests = timed(area, tests, place)
    for mutant in sample:
        if mutant not in imported:
            yield mutant, *_verdict(mutant, tests, place, mutant)


def _verdict(mutant: Mutant, tests: Tests, place: Copy, exchanged: Mutant | None) -> tuple[str, float]:
    chosen = tests.of(mutant)
    if not chosen:
        return "survived: no test executes it", 0.0
    path = place.root / mutant.path
    path.write_text(mutant.source)  # for the processes that tests start
    files = [*dict.fromkeys(test.partition("::")[0] for test in chosen)]
    passed, seconds = place.run(files, Ordered(chosen, tests.seconds), exchanged=exchanged)
    path.write_text(mutant.original)
    return "survived" if passed else "killed", seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default: all")
    parser.add_argument("--mutants", type=int, default=60, help="of every area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl", help="default: %(default)s")
    parser.add_argument("--again", action="store_true", help="run survivors once more")
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    arguments.results = arguments.results.resolve()
    with tempfile.TemporaryDirectory() as folder:
        place = Copy(Path(folder))
        place.enter()
        for area in arguments.areas or AREAS:
            child = os.fork()  # an area imports what the next one changes
            if child == 0:
                run_area(area, place, arguments)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit(f"{area}: not measured")


def run_area(area: str, place: Copy, arguments: argparse.Namespace) -> None:
    """Measure one area, print and keep every verdict."""
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    known: dict[str, str] = {row["mutant"]: row["verdict"] for row in map(json.loads, lines)}
    equivalent: dict[str, str] = yaml.safe_load(EQUIVALENT.read_text())
    count, sample = sample_of(AREAS[area], arguments.mutants, arguments.seed)
    counted = [mutant for mutant in sample if mutant.name not in equivalent]
    wanted = (None, "survived", "survived: no test executes it") if arguments.again else (None,)
    left = [one for one in counted if known.get(one.name) in wanted]
    with arguments.results.open("a") as results:
        for mutant, verdict, seconds in measure(AREAS[area], left, place) if left else ():
            known[mutant.name] = verdict
            print(verdict, f"{mutant.name} (line {mutant.lines[0]}) {seconds:.1f} s", flush=True)
            row = {"area": area, "mutant": mutant.name, "verdict": verdict, "seconds": round(seconds, 1)}
            results.write(json.dumps(row) + "\n")
            results.flush()
    killed = sum(known.get(mutant.name) == "killed" for mutant in counted)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    named = len(sample) - len(counted)
    print(f"{area}: {killed} of {len(counted)} killed, and {named} change nothing; of {count} mutants")
    print(f"processor seconds: {usage.ru_utime + usage.ru_stime:.0f}", flush=True)


if __name__ == "__main__":
    main()
