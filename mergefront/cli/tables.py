"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from textwrap import wrap
from typing import TYPE_CHECKING

from mergefront import formatting
from mergefront.cli.session import storage_argument
from mergefront.optimizer.foreign_text import visible
from mergefront.results import verdict_text
from mergefront.results.report.detectable import detectable_differences, detectable_line, measured_tasks
from mergefront.results.suggestion import export_command, next_steps, suggestion_lines
from mergefront.results.verdict import judged

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mergefront.optimizer.scores.evaluation import Evaluation
    from mergefront.optimizer.scores.objectives import Objective
    from mergefront.results.twin.scores import TwinScores
    from mergefront.study.stored_study import Candidate, Study

_LEAST_COEFFICIENTS = 24
SUGGESTED, ON_FRONT, INFEASIBLE = "◆", "●", "✗"
"""Marks of trials. A word beside the anchor's name would be cut where the screen is narrow."""


def print_front(study: Study) -> None:
    """The front, or the best and its history, the anchors below, what is suggested and who beats whom, on stdout."""
    screen = formatting.console()
    candidates = study.candidates()
    failed = len(study.failures())
    infeasible = sum(1 for candidate in candidates if not candidate.feasible)
    facts = [f"{study.finished_count()} evaluations"]
    facts += [f"{failed} failed"] if failed else []
    facts += [f"{infeasible} violate a constraint"] if infeasible else []
    if not study.has_one_objective:
        facts += [
            f"{len(study.front())} on the front",
            f"hypervolume {formatting.hypervolume(study.measured_hypervolume())}",
        ]
    screen.print(f"Study {study.name}: {', '.join(facts)}", style="bold")
    if not candidates:
        screen.print("No evaluation has finished yet.")
        return
    if study.constraints:
        _print_wrapped(screen, f"Constraints: {', '.join(map(str, study.constraints))}")
    suggested, found = study.suggested(), judged(study)
    where = storage_argument(study.database.url)
    if study.has_one_objective:
        screen.print("The best merge, and below it those that were the best before it")
    table = front_table(study, suggested, screen.width)
    screen.print(table)
    experts = "/".join(study.space.models)
    order = f"coefficients in the order {experts} · " if table.columns[-1].header == "coefficients" else ""
    used = {cell.split()[0] for column in table.columns[:1] for cell in column.cells if isinstance(cell, str)}
    marks = "".join(f"{mark} {meaning} · " for mark, meaning in _marks(study).items() if mark in used)
    in_full = f"mergefront front {quote(study.name)}{where} --json"
    _print_wrapped(screen, f"{marks}± one standard error · {order}in full: {in_full}", style="dim")
    reported = study.evaluations_on("report", study.anchors()) if found is None else found.rows
    if reported and (found is None or found.split == "report"):
        screen.print()
        screen.print("On the report items, which the search never saw", style="bold")
        screen.print(front_table(study, suggested, screen.width, reported))
    said = []
    if study.front():
        said += [verdict_text.best_line(study)] if study.has_one_objective else []
        said += suggestion_lines(study, suggested, found)
        if suggested is not None and not screen.is_terminal:  # there the next steps say it
            said.append(f"Take it: {export_command(study, suggested, where)}")
        said.append("")
    if found is not None:
        said += verdict_text.verdict_lines(found, study.objectives)
        told = detectable_differences(found, measured_tasks(study))
        said += ["", detectable_line(told, found.comparisons)] if told else []
    else:
        said.append(verdict_text.no_merge_on_front(study))
    screen.print()
    for line in said:
        _print_wrapped(screen, line)
    if found is not None and found.noise_known and found.split == "search":
        remedy = (
            f" Score the front on other items: mergefront report {quote(study.name)}{where}"
            if study.definition.evaluator.tasks
            else ""
        )
        screen.print()
        _print_wrapped(
            screen,
            "These are the items that the search optimised on, so the best of many trials looks better "
            f"than it is.{remedy}",
            style="dim",
        )


def step_lines(study: Study, width: int) -> list[str]:
    """What one can do with the front, a command a line, and beside it what for, as far as there is room."""
    steps = next_steps(study, storage_argument(study.database.url))
    lines = [(f"  {command}", f"  # {purpose}") for command, purpose in steps.items()]
    return [command + (purpose if len(command + purpose) <= width else "") for command, purpose in lines]


def front_table(
    study: Study,
    suggested: Candidate | None,
    width: int = formatting.PIPE_WIDTH,
    rows: Mapping[int, Evaluation] | None = None,
) -> Table:
    """Merges on the front, best in the first objective first, then every anchor; marks of trials: see ``_marks``.

    Of a study of one objective: each merge that was better than all merges before it, the best first.

    ``rows`` (trial number -> evaluation) replaces the search's own scores by others, such as those on
    report items; candidates without one are left out.
    """
    from rich.text import Text

    first = study.objectives[0]
    anchors = study.anchors()
    of_anchors = {candidate.digest for candidate in anchors}
    front = study.front()
    members = study.history(merges_only=True) if study.has_one_objective else front
    merges = sorted(
        (candidate for candidate in members if candidate.digest not in of_anchors),
        key=lambda candidate: -first.sign * candidate.scores[first.name],
    )
    cells = {
        candidate.number: _scores(study.objectives, candidate, rows)
        for candidate in (*merges, *anchors)
        if rows is None or candidate.number in rows
    }
    widths = [
        max(len(formatting.heading(objective)), *(len(row[index]) for row in cells.values()))
        for index, objective in enumerate(study.objectives)
    ]
    used = 10 + sum(column + 3 for column in widths)
    room = width - used
    table = frameless()
    table.add_column("trial", justify="right", no_wrap=True, min_width=5)
    for objective, column in zip(study.objectives, widths, strict=True):
        table.add_column(formatting.heading(objective), no_wrap=True, min_width=column)
    with_coefficients = room >= _LEAST_COEFFICIENTS
    experts = "/".join(study.space.models)
    heading = f"coefficients ({experts})" if len(experts) + 15 <= room else "coefficients"
    table.add_column(
        heading if with_coefficients else "", overflow="fold", max_width=room if with_coefficients else None
    )
    marked = None if suggested is None else suggested.number
    on_front = {candidate.digest for candidate in front}
    for candidate in merges:
        if candidate.number in cells:
            params = {"method": candidate.recipe.method, **candidate.params}
            wanted = list(params if study.definition.compares else study.space.searched)
            said = formatting.coefficients(params, study.space.models, wanted)
            is_marked = candidate.number == marked
            number = f"{SUGGESTED} {candidate.number}" if is_marked else str(candidate.number)
            shown = visible(said) if with_coefficients else ""
            last = Text(shown, style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(number, *cells[candidate.number], last, style="bold" if is_marked else "")
    if merges:
        table.add_section()
    for candidate in anchors:
        if candidate.number in cells:
            mark = ON_FRONT if candidate.digest in on_front else "" if candidate.feasible else INFEASIBLE
            mark = SUGGESTED if candidate.number == marked else mark
            number = f"{mark} {candidate.number}".strip()
            table.add_row(number, *cells[candidate.number], visible(f"{candidate.anchor}"), style="cyan")
    return table


def print_twin(twin: TwinScores) -> None:
    """A merge with what it lost of its experts, against size."""
    screen = formatting.console()
    tasks = list(twin.right)
    rows = [
        [
            row.name,
            f"{row.megabytes:,.1f}",
            *(formatting.score(*row.scores[t]) if t in row.scores else "" for t in tasks),
        ]
        for row in twin.rows
    ]
    screen.print()
    screen.print("The merge and what it lost of its experts, on the report items", style="bold")
    screen.print(plain_table(["", "MB", *tasks], rows))
    right = ", ".join(f"{task} {share:.0%}" for task, share in twin.right.items())
    _print_wrapped(screen, f"The router chooses the task's expert: {right}", style="dim")


def _marks(study: Study) -> dict[str, str]:
    """What stands before the trial's number of some rows, and what it means."""
    on_front = "anchor that is the best" if study.has_one_objective else "anchor on the front"
    return {SUGGESTED: "suggested", ON_FRONT: on_front, INFEASIBLE: "anchor that violates a constraint"}


def plain_table(headings: list[str], rows: list[list[str]]) -> Table:
    """A table without frame; cells wrap where they must."""
    table = frameless()
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    return table


def frameless() -> Table:
    """A table without lines but below its headings."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), collapse_padding=True)


def _scores(objectives: Sequence[Objective], candidate: Candidate, rows: Mapping[int, Evaluation] | None) -> list[str]:
    shown = candidate if rows is None else rows[candidate.number]
    return [
        formatting.score(float(shown.scores[objective.name]), shown.standard_errors.get(objective.name))
        for objective in objectives
    ]


def _print_wrapped(screen: Console, line: str, style: str = "") -> None:
    """Prints a line of text, continued with a deeper indent."""
    indent = " " * (len(line) - len(line.lstrip()) + 4 if line.startswith(" ") else 0)
    for part in wrap(line, screen.width, subsequent_indent=indent, break_on_hyphens=False) or [""]:
        screen.print(part, style=style)
