"""Progress of a search on stderr: a live bar, or a line per evaluation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from mergefront import formatting
from mergefront.notebook import Row, front_table, progress_html
from mergefront.optimizer.foreign_text import visible
from mergefront.optimizer.scores.constraints import feasible
from mergefront.optimizer.scores.objectives import Normaliser
from mergefront.optimizer.scores.pareto import HypervolumeSoFar
from mergefront.running.worker import OnTrialEnd, OnTrialStart, nothing
from mergefront.study.stored_study import Study

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from mergefront.optimizer.search.loop import TrialOutcome

Callbacks = tuple[OnTrialEnd, OnTrialStart]


@dataclass
class SearchState:
    """What is known about a search under way. ``rows`` are raw scores (``n x m``) of what satisfies constraints."""

    study: Study
    done: int = 0
    failed: int = 0
    infeasible: int = 0
    rows: list[list[float]] = field(default_factory=list)
    anchors: list[list[float]] = field(default_factory=list)
    merges: int = 0
    evaluated: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    hypervolume: float | None = None
    normaliser: Normaliser | None = None
    so_far: HypervolumeSoFar | None = None
    under_way: str = ""
    last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Takes in what an existing study has already."""
        self.objectives, self.budget = self.study.objectives, self.study.record.evaluations
        self.names = {one.recipe.digest: one.name for one in self.study.plan.warm_start_recipes}
        self.done = self.study.finished_count()
        self.failed = len(self.study.failures())
        for known in self.study.candidates():
            self._add(known.number, known.scores, known.standard_errors, known.anchor, known.feasible)
        self._measure()

    def start(self, number: int, anchor: str | None) -> None:
        """An evaluation starts."""
        self.under_way = f"trial {number}" if anchor is None else f"trial {number}, {anchor}"

    def finish(self, outcome: TrialOutcome) -> float:
        """An evaluation is done; returns the seconds that it took, the proposal included."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        self.done = self.study.ledger.finished_count()  # other workers have done some of it
        self.under_way = ""
        if not outcome.reused:
            self.seconds.append(seconds)
        if outcome.evaluation is None:
            self.failed += 1
            self.failures.append(_what_happened(outcome, self))
        else:
            found = outcome.evaluation
            allowed = feasible(outcome.violations)
            self._add(outcome.number, found.scores, found.standard_errors, outcome.anchor, allowed)
            self._measure()
        return seconds

    def _add(
        self,
        number: int,
        scores: Mapping[str, float],
        errors: Mapping[str, float],
        anchor: str | None,
        allowed: bool,
    ) -> None:
        row = [float(scores[objective.name]) for objective in self.objectives]
        if allowed:
            self.rows.append(row)
            if self.so_far is not None and self.normaliser is not None:
                self.so_far.add(self.normaliser.normalise(row))
            known = tuple(errors.get(objective.name) for objective in self.objectives)
            self.evaluated.append(Row(number, anchor, tuple(row), known))
        else:
            self.infeasible += 1
        if anchor is None:
            self.merges += 1
        else:
            self.anchors.append(row)
            self.so_far = None  # the unit has changed

    def _measure(self) -> None:
        if not self.merges or len(self.objectives) == 1:  # the unit system is not there before the anchors are
            return
        if self.so_far is None:
            self.normaliser = Normaliser.from_anchors(self.objectives, self.anchors)
            self.so_far = HypervolumeSoFar(self.normaliser.reference_point)
            for row in self.rows:
                self.so_far.add(self.normaliser.normalise(row))
        self.hypervolume = self.so_far.measured.value

    @property
    def seconds_left(self) -> float | None:
        """Median seconds of an evaluation times what is left of the budget."""
        return median(self.seconds) * max(self.budget - self.done, 0) if self.seconds else None

    def summary(self) -> str:
        """Hypervolume, best raw scores and failures in a line."""
        parts = [] if self.so_far is None else [f"hypervolume {formatting.hypervolume(self.so_far.measured)}"]
        if self.rows:
            columns = zip(self.objectives, zip(*self.rows, strict=True), strict=True)
            best = {objective.name: (max if objective.sign > 0 else min)(column) for objective, column in columns}
            parts.append("best " + ", ".join(f"{name} {formatting.number(value)}" for name, value in best.items()))
        parts += [f"{self.infeasible} infeasible"] if self.infeasible else []
        parts += [f"{self.failed} failed"] if self.failed else []
        return " · ".join(parts)

    def time_left(self) -> str:
        left = self.seconds_left
        return "" if left is None or self.done >= self.budget else f"about {formatting.duration(left)} left"


def where_it_is_watched(study: Study, wanted: bool) -> AbstractContextManager[Callbacks]:
    """The progress of a search from Python: a bar on a terminal, a bar and the front so far in a notebook.

    Nothing where it is not ``wanted``, or where nobody watches.
    """
    in_notebook = wanted and formatting.console(sys.stderr).is_jupyter
    if not wanted or not (in_notebook or sys.stderr.isatty()):
        return nullcontext((nothing, nothing))
    return in_cell(SearchState(study)) if in_notebook else live(SearchState(study))


@contextmanager
def in_cell(state: SearchState) -> Iterator[Callbacks]:
    """A bar and the front so far below a notebook's cell, drawn anew at each trial; it stays in the end."""
    from IPython.display import HTML, display

    shown = display(HTML(_cell(state)), display_id=True)

    def draw() -> None:
        shown.update(HTML(_cell(state)))

    def on_trial_start(number: int, anchor: str | None) -> None:
        state.start(number, anchor)
        draw()

    def on_trial_end(outcome: TrialOutcome) -> None:
        state.finish(outcome)
        draw()

    yield on_trial_end, on_trial_start


def _cell(state: SearchState) -> str:
    from mergefront.optimizer.scores.pareto import nondominated

    front = ""
    if state.evaluated:
        signed = [[o.sign * score for o, score in zip(state.objectives, row, strict=True)] for row in state.rows]
        kept = nondominated(np.asarray(signed))
        rows = [replace(row, on_front=bool(stays)) for row, stays in zip(state.evaluated, kept, strict=True)]
        front = front_table(state.objectives, rows)
    said = [" · ".join(part for part in (state.summary(), state.time_left()) if part), *state.failures[-3:]]
    said += [f"now {state.under_way}"] if state.under_way else []
    return progress_html(state.done, state.budget, said, front)


@contextmanager
def lines(state: SearchState) -> Iterator[Callbacks]:
    """A line for each evaluation."""

    def on_trial_end(outcome: TrialOutcome) -> None:
        seconds = state.finish(outcome)
        parts = [
            f"[{state.done}/{state.budget}] {_what_happened(outcome, state)} ({formatting.duration(seconds)})",
            state.summary(),
            state.time_left(),
        ]
        print(visible(" | ".join(part for part in parts if part)), file=sys.stderr, flush=True)

    yield on_trial_end, state.start


@contextmanager
def live(state: SearchState) -> Iterator[Callbacks]:
    """A bar that is always up to date; failures stay above it."""
    with on_screen(lambda: _picture(state)) as shown:

        def on_trial_end(outcome: TrialOutcome) -> None:
            state.finish(outcome)
            if outcome.failure is not None:
                shown.console.print(_what_happened(outcome, state), style="red")

        yield on_trial_end, state.start
        shown.refresh()  # the end draws a terminal anew, but no notebook


def on_screen(picture: Callable[[], RenderableType]) -> Live:
    """Shows a picture on stderr, anew four times a second from a thread of its own: the clock runs meanwhile."""
    from rich.live import Live

    # What is printed to a file goes on going there.
    stdout = sys.stdout.isatty()
    return Live(
        get_renderable=picture, console=formatting.console(sys.stderr), refresh_per_second=4, redirect_stdout=stdout
    )


def _picture(state: SearchState) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    below = " · ".join(part for part in (state.summary(), f"now {state.under_way}" if state.under_way else "") if part)
    line = bar(state.done, state.budget, "evaluations", state.time_left())
    return Group(line, Text(visible(below), style="dim", overflow="ellipsis", no_wrap=True))


def bar(done: int, total: int, what: str, left: str) -> RenderableType:
    """How far something is: the count, a bar, the time left."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(
        Text(f"{done}/{total} {what}", style="bold"), ProgressBar(total=total, completed=done), Text(left, style="cyan")
    )
    return line


def _what_happened(outcome: TrialOutcome, state: SearchState) -> str:
    named = outcome.anchor or state.names.get(outcome.recipe.digest, "")
    who = f"trial {outcome.number} {named}".rstrip()
    if outcome.evaluation is None:
        return f"{who} failed: {outcome.failure}"
    found, errors = outcome.evaluation.scores, outcome.evaluation.standard_errors
    scores = ", ".join(
        f"{objective.name} {formatting.score(float(found[objective.name]), errors.get(objective.name))}"
        for objective in state.objectives
    )
    notes = ["violates a constraint"] if not feasible(outcome.violations) else []
    notes += ["known already"] if outcome.reused else []
    return ", ".join([f"{who}: {scores}", *notes])
