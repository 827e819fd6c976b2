"""Progress of a search on stderr: a live line on a terminal, one line per evaluation elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from mergefront import formatting
from mergefront.cli.logs import echo
from mergefront.optimizer.foreign_text import visible
from mergefront.optimizer.scores.constraints import feasible
from mergefront.optimizer.scores.objectives import Normaliser, Objective

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from mergefront.cli.session import Session
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.optimizer.scores.evaluation import Evaluation
    from mergefront.optimizer.search.loop import TrialOutcome
    from mergefront.running.report_items import OnScored, ReportPlan
    from mergefront.running.worker import OnTrialEnd, OnTrialStart
    from mergefront.study.stored_study import Candidate, Study


@dataclass
class SearchState:
    """What is known about a search under way. ``rows`` are raw scores (``n x m``) of what satisfies constraints."""

    objectives: Sequence[Objective]
    budget: int
    done: int = 0
    failed: int = 0
    infeasible: int = 0
    rows: list[list[float]] = field(default_factory=list)
    anchors: list[list[float]] = field(default_factory=list)
    merges: int = 0
    seconds: list[float] = field(default_factory=list)
    hypervolume: float | None = None
    under_way: str = ""

    def start_from(self, study: Study) -> None:
        """Take in what an existing study has already."""
        self.done = study.finished_count()
        self.failed = len(study.failures())
        for candidate in study.candidates():
            self._add(candidate.scores, candidate.anchor, candidate.feasible)
        self._measure()

    def start(self, number: int, anchor: str | None) -> None:
        """An evaluation starts."""
        self.under_way = f"trial {number}" if anchor is None else f"trial {number}, {anchor}"

    def finish(self, outcome: TrialOutcome, seconds: float) -> None:
        """An evaluation is done; ``seconds`` is wall time, the proposal included."""
        self.done += 1
        self.under_way = ""
        if not outcome.reused:
            self.seconds.append(seconds)
        if outcome.evaluation is None:
            self.failed += 1
            return
        self._add(outcome.evaluation.scores, outcome.anchor, feasible(outcome.violations))
        self._measure()

    def _add(self, scores: Mapping[str, float], anchor: str | None, allowed: bool) -> None:
        row = [float(scores[objective.name]) for objective in self.objectives]
        if allowed:
            self.rows.append(row)
        else:
            self.infeasible += 1
        if anchor is None:
            self.merges += 1
        else:
            self.anchors.append(row)

    def _measure(self) -> None:
        from mergefront.optimizer.scores.pareto import hypervolume

        if not self.merges:  # the unit system is not there before the anchors are
            return
        normaliser = Normaliser.from_anchors(self.objectives, self.anchors)
        self.hypervolume = hypervolume([normaliser.normalise(row) for row in self.rows], normaliser.reference_point)

    @property
    def seconds_left(self) -> float | None:
        """Median seconds of an evaluation times what is left of the budget."""
        return median(self.seconds) * max(self.budget - self.done, 0) if self.seconds else None

    def summary(self) -> str:
        """Hypervolume, best raw scores and failures in a line."""
        parts = [] if self.hypervolume is None else [f"hypervolume {formatting.number(self.hypervolume)}"]
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


Callbacks = tuple["OnTrialEnd", "OnTrialStart"]


@contextmanager
def search_progress(session: Session, study: Study) -> Iterator[Callbacks]:
    """Show a search of ``study``; yields the callbacks ``on_trial_end`` and ``on_trial_start`` of ``Search.run``.

    From here on an interruption says how to resume.
    """
    state = SearchState(study.objectives, study.record.evaluations)
    state.start_from(study)
    session.study, session.kept, session.budget = (study.name, study.database.url), state.done, state.budget
    last = time.monotonic()

    def finish(outcome: TrialOutcome) -> float:
        nonlocal last
        now = time.monotonic()
        seconds, last = now - last, now
        state.finish(outcome, seconds)
        state.done = study.ledger.finished_count()  # other workers have done some of it
        session.kept = state.done
        return seconds

    for_people = _live if sys.stderr.isatty() else _lines
    show = partial(_events, study.name) if session.log_format == "json" else for_people
    with show(state, finish) as callbacks:
        yield callbacks
    session.study = None


@contextmanager
def _lines(state: SearchState, finish: Callable[[TrialOutcome], float]) -> Iterator[Callbacks]:
    def on_trial_end(outcome: TrialOutcome) -> None:
        seconds = finish(outcome)
        parts = [
            f"[{state.done}/{state.budget}] {_what_happened(outcome, state.objectives)} "
            f"({formatting.duration(seconds)})",
            state.summary(),
            state.time_left(),
        ]
        echo(" | ".join(part for part in parts if part), err=True)

    yield on_trial_end, state.start


@contextmanager
def _events(name: str, state: SearchState, finish: Callable[[TrialOutcome], float]) -> Iterator[Callbacks]:
    """One JSON event when the search begins, for each trial, and at the end."""
    from mergefront.cli.logs import log_event

    def on_trial_end(outcome: TrialOutcome) -> None:
        seconds = finish(outcome)
        evaluation = outcome.evaluation
        log_event(
            "trial",
            study=name,
            trial=outcome.number,
            anchor=outcome.anchor,
            seconds=round(seconds, 3),
            scores=None if evaluation is None else dict(evaluation.scores),
            failure=None if outcome.failure is None else str(outcome.failure),
            reused=outcome.reused,
            done=state.done,
            budget=state.budget,
            failed=state.failed,
            hypervolume=state.hypervolume,
            seconds_left=state.seconds_left,
        )

    log_event("search", study=name, done=state.done, budget=state.budget)
    yield on_trial_end, state.start
    log_event("end", study=name, done=state.done, budget=state.budget, failed=state.failed)


@contextmanager
def _live(state: SearchState, finish: Callable[[TrialOutcome], float]) -> Iterator[Callbacks]:
    with _on_screen(lambda: _picture(state)) as live:

        def on_trial_end(outcome: TrialOutcome) -> None:
            finish(outcome)
            if outcome.failure is not None:
                live.console.print(_what_happened(outcome, state.objectives), style="red")

        yield on_trial_end, state.start


def _on_screen(picture: Callable[[], RenderableType]) -> Live:
    """Shows a picture on stderr, anew four times a second from a thread of its own: the clock runs meanwhile."""
    from rich.live import Live

    from mergefront.cli.tables import console

    # What is printed to a file goes on going there.
    stdout = sys.stdout.isatty()
    return Live(get_renderable=picture, console=console(sys.stderr), refresh_per_second=4, redirect_stdout=stdout)


def _picture(state: SearchState) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    below = " · ".join(part for part in (state.summary(), f"now {state.under_way}" if state.under_way else "") if part)
    line = _bar(state.done, state.budget, "evaluations", state.time_left())
    return Group(line, Text(visible(below), style="dim", overflow="ellipsis", no_wrap=True))


def _bar(done: int, total: int, what: str, left: str) -> RenderableType:
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


@contextmanager
def report_progress(session: Session, study: Study, plan: ReportPlan) -> Iterator[OnScored]:
    """Show how far a report is: a live bar on a terminal, a line or an event per candidate elsewhere.

    From here on an interruption says what is kept; the end says what it took.
    """
    from mergefront.cli.logs import log_event
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.results.throughput import spent

    total, started = len(plan.wanted), time.monotonic()
    ends: list[float] = []
    scored: list[Evaluation] = []
    session.reported = (0, total)

    def seconds_left() -> float | None:
        each = ends[-1] / len(ends) if ends else plan.seconds
        left = None if each is None else each * total - (time.monotonic() - started)
        return left if left is not None and left > 0 and len(ends) < total else None

    def time_left() -> str:
        left = seconds_left()
        return "" if left is None else f"about {formatting.duration(left)} left"

    def on_scored(candidate: Candidate, result: Evaluation | EvaluationError) -> None:
        ends.append(time.monotonic() - started)
        failure = str(result) if isinstance(result, EvaluationError) else None
        if not isinstance(result, EvaluationError):
            scored.append(result)
        session.reported = (len(scored), total)
        who = f"trial {candidate.number}" + (f" {candidate.anchor}" if candidate.anchor else "")
        said = f"{who} done" if failure is None else f"{who} failed: {failure}"
        if session.log_format == "json":
            known = {"study": study.name, "trial": candidate.number, "anchor": candidate.anchor, "failure": failure}
            log_event("report", **known, done=len(ends), total=total, seconds_left=seconds_left())
        elif live is None:
            echo(" | ".join(filter(None, (f"[{len(ends)}/{total}] {said}", time_left()))), err=True)
        elif failure is not None:
            live.console.print(said, style="red")

    live = None
    with ExitStack() as shown:
        if session.log_format != "json" and sys.stderr.isatty():
            live = shown.enter_context(_on_screen(lambda: _bar(len(ends), total, "candidates", time_left())))
        yield on_scored
    took = spent(scored)
    costs = "".join(f", {value:,.0f} {kind.replace('_', ' ')}" for kind, value in took.cost.items() if value)
    session.say(f"Scored {len(scored)} candidates in {formatting.duration(time.monotonic() - started)}{costs}.")
    session.reported = None


def _what_happened(outcome: TrialOutcome, objectives: Sequence[Objective]) -> str:
    who = f"trial {outcome.number}" + (f" {outcome.anchor}" if outcome.anchor else "")
    if outcome.evaluation is None:
        return f"{who} failed: {outcome.failure}"
    found, errors = outcome.evaluation.scores, outcome.evaluation.standard_errors
    scores = ", ".join(
        f"{objective.name} {formatting.score(float(found[objective.name]), errors.get(objective.name))}"
        for objective in objectives
    )
    notes = ["violates a constraint"] if not feasible(outcome.violations) else []
    notes += ["known already"] if outcome.reused else []
    return ", ".join([f"{who}: {scores}", *notes])
