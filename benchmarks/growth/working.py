"""Workers on one study, with evaluations of a second."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.growth.rows import Row

SECONDS = 40


def workers(url: str) -> Callable[[], object]:
    """So many workers of MM-MO; tells trials a second of the most that they could do."""
    count = int(Path(_size(url)).read_text())

    def work() -> str:
        command = [
            sys.executable, "benchmarks/service/soak.py", "--workers", str(count), "--trials", "100000",
            "--sampler", "mm-mo", "--evaluation-seconds", "1", "--database", "sqlite", "--seconds", str(SECONDS),
            "--kill-every", "1e9",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        return f"{json.loads(done.stdout)['trials_per_second']} of {count} trials a second"

    return work


def _size(url: str) -> str:
    return url.removeprefix("sqlite:///") + ".workers"


ROWS: Mapping[str, Row] = {
    f"{SECONDS} s of workers, mm-mo, evaluations of 1 s": Row(
        lambda url, count: Path(_size(url)).write_text(str(count)), workers, 8, of="workers"
    ),
}
