"""Runs a model's program in a process that can do little: a seat belt against accidents, not a jail.

The child limits its own processor time, memory and file size, and forbids itself, by a seccomp filter of
the Linux kernel, every system call that starts a process, opens a socket, signals a process, or opens a file for
writing, creates, renames or removes one. It can read files and compute, and nothing else. The filter cannot
be taken off again. A program passed when it ran to its end without an exception.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

MOST_AT_ONCE = 4
_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class SandboxLimits:
    """``seconds`` of processor time (twice that of wall time), ``memory_mb`` of address space."""

    seconds: float
    memory_mb: int


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end, and if not, why: "error: ...", "time", or "killed"."""

    passed: bool
    reason: str


def missing_sandbox() -> str | None:
    """Why programs cannot be run here, or None."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return (
            f"models' programs run only on Linux (x86_64, aarch64), whose kernel confines them; this is {sys.platform}"
        )
    return None


def run_programs(programs: Sequence[str], limits: SandboxLimits) -> list[Outcome]:
    """Run each program by itself; the outcomes in their order."""
    with ThreadPoolExecutor(max(1, min(MOST_AT_ONCE, os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda program: run_program(program, limits), programs))


def run_program(program: str, limits: SandboxLimits) -> Outcome:
    """Run one program in an empty folder, with an empty environment."""
    # Without the word, a program that ends itself early (sys.exit, os._exit) would pass.
    word = secrets.token_hex(16)
    asked = json.dumps(
        {"program": program, "word": word, "seconds": limits.seconds, "memory": limits.memory_mb * 2**20}
    )
    # A file and not a pipe: the child's limit on file sizes bounds what a flood of output can take of our memory.
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            child.communicate(asked.encode("utf-8", "replace"), timeout=2 * limits.seconds + 1)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return Outcome(False, "time")
        answer.seek(0)
        output = answer.read()
    said = output.decode("utf-8", "replace")
    if said == word:
        return Outcome(True, "passed")
    return Outcome(False, said[:300] if said.startswith("error: ") else "killed")
