"""Progress on stderr for people and for programs, and what an interruption says of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from mergefront import formatting
from mergefront.cli.logs import echo
from mergefront.running.progress import Callbacks, SearchState, bar, lines, live, on_screen

if TYPE_CHECKING:
    from mergefront.cli.session import Session
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.optimizer.scores.evaluation import Evaluation
    from mergefront.optimizer.search.loop import TrialOutcome
    from mergefront.running.report_items import OnScored, ReportPlan
    from mergefront.study.stored_study import Candidate, Study


@contextmanager
def search_progress(session: Session, study: Study) -> Iterator[Callbacks]:
    """Show a search of ``study``; yields the callbacks ``on_trial_end`` and ``on_trial_start`` of ``Search.run``.

    From here on an interruption says how to resume.
    """
    state = SearchState(study)
    session.study, session.kept, session.budget = (study.name, study.database.url), state.done, state.budget
    for_people = live if sys.stderr.isatty() else lines
    with (_events if session.log_format == "json" else for_people)(state) as (show_end, show_start):

        def on_trial_end(outcome: TrialOutcome) -> None:
            show_end(outcome)
            session.kept = state.done

        yield on_trial_end, show_start
    session.study = None


@contextmanager
def _events(state: SearchState) -> Iterator[Callbacks]:
    """One JSON event when the search begins, for each trial, and at the end."""
    from mergefront.cli.logs import log_event

    def on_trial_end(outcome: TrialOutcome) -> None:
        seconds = state.finish(outcome)
        evaluation = outcome.evaluation
        log_event(
            "trial",
            study=state.study.name,
            trial=outcome.number,
            anchor=outcome.anchor,
            seconds=round(seconds, 3),
            scores=None if evaluation is None else dict(evaluation.scores),
            failure=None if outcome.failure is None else str(outcome.failure),
            reused=outcome.reused,
            done=state.done,
            budget=state.budget,
            failed=state.failed,
            **({} if len(state.objectives) == 1 else {"hypervolume": state.hypervolume}),
            seconds_left=state.seconds_left,
        )

    log_event("search", study=state.study.name, done=state.done, budget=state.budget)
    yield on_trial_end, state.start
    log_event("end", study=state.study.name, done=state.done, budget=state.budget, failed=state.failed)


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
        now, count = time.monotonic() - started, len(ends)
        # The first one's time has the loading of the models in it.
        each = plan.seconds if count < 2 else (ends[-1] - ends[0]) / (count - 1)
        if each is None or count == total:
            return None
        return max(each * (total - count) - (now - ends[-1] if ends else 0.0), 0.0)

    def time_left() -> str:
        left = seconds_left()
        return "" if not left else f"about {formatting.duration(left)} left"

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
        elif screen is None:
            echo(" | ".join(filter(None, (f"[{len(ends)}/{total}] {said}", time_left()))), err=True)
        elif failure is not None:
            screen.console.print(said, style="red")

    screen = None
    with ExitStack() as shown:
        if session.log_format != "json" and sys.stderr.isatty():
            screen = shown.enter_context(on_screen(lambda: bar(len(ends), total, "candidates", time_left())))
        yield on_scored
    took = spent(scored)
    costs = "".join(f", {formatting.amount(kind, value)}" for kind, value in took.cost.items() if value)
    session.say(f"Scored {len(scored)} candidates in {formatting.duration(time.monotonic() - started)}{costs}.")
    session.reported = None
