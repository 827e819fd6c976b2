"""A model's program can compute and read, and do nothing else to the machine that it runs on."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from mergefront.adapters.tasks.metrics.sandbox import SandboxLimits, missing_sandbox, run_program, run_programs

pytestmark = pytest.mark.skipif(missing_sandbox() is not None, reason="this kernel has no seccomp")
LIMITS = SandboxLimits(seconds=1.0, memory_mb=512)


def test_programs_that_pass_their_tests_pass_and_others_say_why_not() -> None:
    passed, wrong, broken = run_programs(
        ["import math\nassert math.gcd(4, 6) == 2", "assert 1 + 1 == 3, 'three'", "def f(:"], LIMITS
    )
    assert passed.passed
    assert not wrong.passed and "three" in wrong.reason
    assert not broken.passed and "SyntaxError" in broken.reason


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_programs_that_never_end_are_ended(program: str) -> None:
    assert not run_program(program, LIMITS).passed


@pytest.mark.parametrize(
    "program", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise KeyboardInterrupt", "x = 'a' * 10**10"]
)
def test_a_program_that_ends_early_does_not_pass(program: str) -> None:
    assert not run_program(program, LIMITS).passed


@pytest.mark.parametrize(
    "harm",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import socket; socket.socket()",
        "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "import ctypes; assert ctypes.CDLL(None).fork() != -1",
    ],
)
def test_processes_sockets_and_signals_are_refused(harm: str) -> None:
    outcome = run_program(harm, LIMITS)
    assert not outcome.passed
    assert "not permitted" in outcome.reason or "not allowed" in outcome.reason or "AssertionError" in outcome.reason


def test_no_file_is_made_changed_or_removed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for harm in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'a')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'moved')!r})",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"import os; os.symlink('/', {str(tmp_path / 'link')!r})",
        "open('here', 'w')",
    ):
        assert "not permitted" in run_program(harm, LIMITS).reason, harm
    assert os.listdir(tmp_path) == ["kept"] and kept.read_text() == "as it was"
    assert run_program(f"assert open({str(kept)!r}).read() == 'as it was'", LIMITS).passed


def test_threads_and_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "xyz")
    assert run_program("import os; assert 'A_SECRET' not in os.environ", LIMITS).passed
    assert run_program("import threading; t = threading.Thread(target=int); t.start(); t.join()", LIMITS).passed


def test_a_flood_of_output_takes_no_memory_here() -> None:
    """One program of one model would end a search for want of memory."""
    flood = """
import os
for number in range(10):
    try:
        for _ in range(32):
            os.write(number, b"x" * 2**20)
    except OSError:
        pass
"""
    tracemalloc.start()
    outcome = run_program(flood, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not outcome.passed and peak < 2**20
