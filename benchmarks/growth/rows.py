"""A row of the table: a piece of work, how its study is made, and how it is measured."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Work = Callable[[], object]
Ready = Callable[[str], Work]
"""From the URL of a database to the work itself: imports and loading are its own, and are not measured."""


@dataclass(frozen=True)
class Row:
    """``make`` writes a study of a size into the database at a URL; ``ready`` and ``plain`` return the work on it.

    Work may return a string, which is shown beside its seconds. ``of`` says what the size counts.
    """

    make: Callable[[str, int], object]
    ready: Ready
    size: int
    of: str = "trials"
    plain: Ready | None = None
    """The same work by Optuna alone."""
    drawn: Sequence[int] = ()
    """Sizes at which the picture shows it."""
    bar: str = ""
    """Of CPU seconds, as it was asked for."""


def measured(work: Work) -> dict[str, Any]:
    """CPU seconds of two calls, children's too (the second as a page is looked at again), and peak memory in MB."""
    times, told = [], ""
    for _ in range(2):
        begun = _cpu_seconds()
        found = work()
        times.append(round(_cpu_seconds() - begun, 2))
        told = found if isinstance(found, str) else told
    return {"first": times[0], "again": times[1], "MB": _peak_memory() // 1024, "told": told}


def _peak_memory() -> int:
    """KB at most, of the work's own processes where it starts some, or else of this one."""
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if of_children:
        return of_children
    # A process's ru_maxrss begins with what its parent held; this is its own.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _cpu_seconds() -> float:
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)
