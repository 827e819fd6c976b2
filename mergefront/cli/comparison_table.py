"""A comparison of merge methods as a table for the terminal."""

from __future__ import annotations

import shlex
from textwrap import wrap
from typing import TYPE_CHECKING

from mergefront import formatting
from mergefront.cli.session import storage_argument
from mergefront.cli.tables import frameless
from mergefront.optimizer.recipes.published import NOT_HERE
from mergefront.results.report.detectable import detectable_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mergefront.results.comparison import Comparison, Row
    from mergefront.study.stored_study import Study

_BETTER, _WORSE = "▲", "▼"
_VIOLATES = "✗"
_UNKNOWN = "–"
_COSTS_WIDTH = 20
_SHARES_WIDTH, _SIZE_WIDTH = 72, 9
"""Characters of the table of subsets, and of each number of experts in it."""


def print_comparison(found: Comparison, study: Study) -> None:
    """The models with their scores, the shares of subsets, who cannot be used and why, and the verdict, on stdout."""
    screen = formatting.console()
    items = "the report items" if found.split == "report" else "the search items"
    screen.print(f"Study {found.study}: {len(found.merges)} merges on {items}", style="bold")
    table, hidden = comparison_table(found, screen.width)
    screen.print(table)
    _say(screen, _legend(found, hidden), "dim")
    if found.shares:
        screen.print()
        screen.print("Over random subsets of the experts", style="bold")
        screen.print(_subset_table(found, screen.width))
        said = "wins: subsets on which the mean is above the base's, with the 95 % interval of their share"
        _say(screen, f"{said} · of 2: the mean where two experts are merged", "dim")
    lines = [f"{label} failed: {reason}" for label, reason in found.failed.items()]
    lines += [f"Not for this study: {'; '.join(found.left_out.values())}"] if found.left_out else []
    lines += [f"{found.unfinished} evaluations are left; the same command continues"] if found.unfinished else []
    if lines:
        screen.print()
    for line in lines:
        _say(screen, f"{line}.")
    missing = [f"{', '.join(names)} of {source}" for source, names in NOT_HERE.items() if names]
    _say(screen, f"mergefront has no {'; no '.join(missing)}; it has all methods of {_complete()}.", "dim")
    if found.detectable:
        _say(screen, detectable_line(found.detectable, found.comparisons), "dim")
    screen.print()
    _say(screen, found.verdict, "bold")
    best = next((row for row in found.merges if row.is_winner), None)
    if best is not None:
        where = storage_argument(study.database.url)
        _say(screen, f"Take it: mergefront export {shlex.quote(found.study)}{where} --trial {best.trial} --out merged")


def comparison_table(found: Comparison, width: int) -> tuple[Table, list[str]]:
    """A row per model, and what has no column because the screen is too narrow for it."""
    cells = [
        [
            f"{row.label} {_VIOLATES}" if row.violates else row.label,
            *(f"{formatting.number(row.scores[task.name])}{_mark(row, task.name)}" for task in found.tasks),
        ]
        for row in found.rows
    ]
    headings = ["model", *(formatting.heading(task) for task in found.tasks)]
    widths = [max(map(len, column)) + 3 for column in zip(headings, *cells, strict=True)]
    after, costs = ["of expert", "forgets", "vs best"], ["merge", "memory"]
    room = width - widths[0] - sum(len(heading) + 3 for heading in after)
    shown = 0
    while shown < len(found.tasks) and room >= widths[1 + shown]:
        room -= widths[1 + shown]
        shown += 1
    with_costs = room >= _COSTS_WIDTH
    table = frameless()
    table.add_column(headings[0], no_wrap=True, overflow="ellipsis")
    for heading in (*headings[1 : 1 + shown], *after, *(costs if with_costs else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    kind = None
    for row, line in zip(found.rows, cells, strict=True):
        if kind not in (None, row.kind):
            table.add_section()
        kind = row.kind
        style = "bold" if row.is_winner else "cyan" if kind != "merge" else ""
        table.add_row(*line[: 1 + shown], *_shares(row), *(_costs(row) if with_costs else ()), style=style)
    more = len(found.tasks) - shown
    hidden = [f"{more} more task{'s' if more > 1 else ''}"] if more else []
    return table, hidden + ([] if with_costs else ["seconds and memory of the merges"])


def _shares(row: Row) -> list[str]:
    lead = row.against_expert
    return [
        _UNKNOWN if row.mean is None else formatting.number(row.mean),
        _UNKNOWN if row.forgets is None else f"{100 * row.forgets:.1f} %",
        f"+{len(lead.better)} −{len(lead.worse)}",
    ]


def _costs(row: Row) -> list[str]:
    return [
        _UNKNOWN if row.seconds is None else formatting.duration(row.seconds),
        _UNKNOWN if row.peak_bytes is None else formatting.size(row.peak_bytes),
    ]


def _mark(row: Row, task: str) -> str:
    return _BETTER if task in row.against_base.better else _WORSE if task in row.against_base.worse else " "


def _legend(found: Comparison, hidden: list[str]) -> str:
    said = [
        f"{_BETTER}{_WORSE} better or worse than the base beyond noise",
        "of expert: mean of the scores as shares of the task's expert's",
        "forgets: the largest share of a score of the base that is lost",
    ]
    if found.best_expert is not None:
        said.append(f"vs best: tasks better and worse than {found.best_expert}, beyond noise")
    missed = sorted({name for row in found.rows for name in row.violates})
    said += [f"{_VIOLATES} violates {', '.join(missed)}"] if missed else []
    said += [f"--json or a wider screen: {', '.join(hidden)}"] if hidden else ["memory: most in use while merging"]
    return " · ".join(said)


def _subset_table(found: Comparison, width: int) -> Table:
    table = frameless()
    sizes = sorted({size for one in found.shares for size in one.by_size})
    room = max(2, (width - _SHARES_WIDTH) // _SIZE_WIDTH)
    if len(sizes) > room:  # the ends and what lies evenly between them; all are in the JSON
        sizes = [sizes[place * (len(sizes) - 1) // (room - 1)] for place in range(room)]
    for heading in ("method", "wins", "95 %", "above the best expert", *(f"of {size}" for size in sizes)):
        table.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for one in found.shares:
        low, high = one.interval
        beaten = f"{one.beats_best_expert} of {one.subsets}"
        means = [formatting.number(one.by_size[size]) if size in one.by_size else _UNKNOWN for size in sizes]
        table.add_row(one.label, f"{one.beats_base} of {one.subsets}", f"{low:.2f} to {high:.2f}", beaten, *means)
    return table


def _complete() -> str:
    return ", ".join(source for source, names in NOT_HERE.items() if not names)


def _say(screen: Console, text: str, style: str = "") -> None:
    for part in wrap(text, screen.width, subsequent_indent="  ", break_on_hyphens=False):
        screen.print(part, style=style)
