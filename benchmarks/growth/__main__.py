"""``python -m benchmarks.growth [--only ROW] [--size N] [--document docs/benchmarks/operations.md]``

Prints a Markdown table: CPU seconds of one core, without imports and without making the study, and peak memory. "plain"
is the same work by Optuna or optuna-dashboard alone, on the same study. With ``--document`` the table and a plot over
the sizes of some rows are written there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.growth import lora_pools, proposing, reading, starting, working
from benchmarks.growth.rows import Row, measured

ROWS: Mapping[str, Row] = {
    **proposing.ROWS,
    **reading.ROWS,
    **starting.ROWS,
    **lora_pools.ROWS,
    **working.ROWS,
}
BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"
COLUMNS = ("work", "size", "CPU s", "again", "MB", "", "plain, CPU s", "MB", "bar, CPU s")


def in_process(row: str, url: str, which: str) -> dict[str, Any]:
    """One piece of work on a study that is there, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--only", row, "--at", url, "--which", which]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def at_size(name: str, size: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Ours, and the plain counterpart where there is one."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'growth.db'}"
        ROWS[name].make(url, size)
        ours = in_process(name, url, "ready")
        return ours, in_process(name, url, "plain") if ROWS[name].plain else None


def line(name: str, size: int, ours: Mapping[str, Any], plain: Mapping[str, Any] | None) -> str:
    row = ROWS[name]
    beside = ours["told"] if plain is None or not plain["told"] else f"{ours['told']} (plain {plain['told']})"
    apart = ["", ""] if plain is None else [plain["first"], plain["MB"]]
    cells = [name, f"{size:,} {row.of}", ours["first"], ours["again"], ours["MB"], beside, *apart, row.bar]
    return f"| {' | '.join(map(str, cells))} |"


def drawn(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """CPU seconds over the number of trials, both logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        style = {"linestyle": "--", "color": "grey"} if "plain" in name else {}
        axes.plot(list(curve), list(curve.values()), marker="o", markersize=4, label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="size: trials, or LoRAs", ylabel="CPU seconds, one core")
    sizes = sorted({size for curve in curves.values() for size in curve})
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--size", type=int, help="of the studies, instead of each row's own")
    parser.add_argument("--document", type=Path, help="where the table goes; the plot lies beside it")
    parser.add_argument("--at", help=argparse.SUPPRESS)
    parser.add_argument("--which", choices=["ready", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.at:
        (only,) = arguments.only
        print(json.dumps(measured(getattr(ROWS[only], arguments.which)(arguments.at))))
        return
    lines = [f"| {' | '.join(COLUMNS)} |", "| -- | --: | --: | --: | --: | -- | --: | --: | --: |"]
    print("\n".join(lines))
    curves: dict[str, dict[int, float]] = {}
    for name in arguments.only:
        row = ROWS[name]
        sizes = {arguments.size or row.size, *(row.drawn if arguments.document else ())}
        for size in sorted(sizes):
            ours, plain = at_size(name, size)
            curves.setdefault(name, {})[size] = ours["first"]
            if plain is not None:
                curves.setdefault(f"{name}, plain Optuna", {})[size] = plain["first"]
            if size == (arguments.size or row.size):
                lines.append(line(name, size, ours, plain))
                print(lines[-1], flush=True)
    if arguments.document:
        document = arguments.document.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        table = "\n".join(lines)
        arguments.document.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
        shown = {name: curve for name, curve in curves.items() if len(curve) > 1}
        drawn(shown, arguments.document.with_name("growth.png"))


if __name__ == "__main__":
    main()
