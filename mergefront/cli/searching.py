"""What commands that search have in common: progress, the report items, what to do next."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from mergefront.cli.logs import echo
from mergefront.cli.session import Session, shown_storage, storage_argument

if TYPE_CHECKING:
    from mergefront.optimizer.search.loop import TrialOutcome
    from mergefront.running.report_items import ReportPlan
    from mergefront.running.run import Launcher
    from mergefront.study.ready import ReadyStudy
    from mergefront.study.stored_study import Candidate, Study


def say(message: str) -> None:
    """A line for whoever watches."""
    echo(message, err=True)


def score_report(session: Session, study: Study, merges: Sequence[Candidate] | None = None) -> None:
    """Score merges (by default the front's) and the anchors on the report items, after saying what that takes."""
    from mergefront.cli.progress import report_progress
    from mergefront.running.report_items import plan_report, report

    plan = plan_report(study, merges)
    for line in report_estimate(study, plan, whole_front=merges is None):
        session.say(line)
    if plan.wanted:
        with report_progress(session, study, plan) as on_scored:
            report(study, plan, on_scored)


def report_estimate(study: Study, plan: ReportPlan, whole_front: bool) -> Iterator[str]:
    """What a report will cost, beside what the search has cost."""
    from mergefront.formatting import duration
    from mergefront.results.throughput import spent

    count = len(plan.wanted)
    if not count:
        yield f"All {plan.known} candidates have been scored on the report items before."
        return
    anchors = sum(1 for candidate in plan.wanted if candidate.anchor is not None)
    who = [f"{count - anchors} merges"] if anchors < count else []
    who += [f"{anchors} anchors"] if anchors else []
    known = f" ({plan.known} have been scored before)" if plan.known else ""
    line = f"Report items: {' and '.join(who)} to score{known}"
    searched = spent(study.own_evaluations())
    asked, cost = plan.items * count, searched.cost.get("items", 0)
    if asked:
        line += f" on {plan.items:,} items each, {asked:,} in all" + (f" (the search: {cost:,.0f})" if cost else "")
    if plan.seconds is not None:
        total = searched.seconds.get("total")
        line += f", about {duration(plan.seconds * count)}"
        line += "" if total is None else f" (the search: {duration(total)})"
        line += f"; task {', '.join(plan.untimed)} not counted, because it has no timing yet" if plan.untimed else ""
    yield line + "."
    if whole_front and count - anchors > 1:
        yield "Fewer: --distinct, --trials 3,7 or --prefer NAME=WEIGHT,... of 'mergefront report'."


def show_search(session: Session, ready: ReadyStudy, launcher: Launcher, trackers: Sequence[str] = ()) -> Study:
    """Search a study that is ready, with progress, after what there is to say of it."""
    from mergefront.cli.progress import search_progress
    from mergefront.running.run import search_ready
    from mergefront.tracking.log_to import logged_to

    for note in ready.notes:
        say(note)
    logged = logged_to(ready.study, trackers)
    with logged as log_trials, search_progress(session, ready.study) as (show_end, show_start):

        def on_trial_end(outcome: TrialOutcome) -> None:
            show_end(outcome)
            log_trials(outcome)

        return search_ready(ready, launcher, on_trial_end, show_start)


def search_file(
    session: Session, study_file: Path, evaluations: int | None, launcher: Launcher, trackers: Sequence[str] = ()
) -> Study:
    """Check a study file and run it with progress."""
    from mergefront.study.check import check_study
    from mergefront.study.ready import ready_to_run

    report = check_study(study_file, evaluations)
    with ready_to_run(report, with_evaluator=launcher.name is None) as ready:
        return show_search(session, ready, launcher, trackers)


def finish(study: Study) -> None:
    """The front on stdout; where it is kept and what to do next on stderr.

    Raises ``SearchStoppedError`` where every evaluation failed: there is nothing to show.
    """
    from mergefront.cli.tables import print_front, step_lines
    from mergefront.formatting import console
    from mergefront.optimizer.errors import SearchStoppedError
    from mergefront.optimizer.scores.outcomes import outcome_lines

    failures = study.failures()
    if failures and not study.candidates():
        raise SearchStoppedError(
            f"every evaluation of study {study.name!r} failed ({len(failures)}); the last one: {failures[-1].reason}"
        )
    print_front(study)
    told = outcome_lines(study.own_evaluations())
    for line in ("", *(f"Items of task {line}." for line in told)) if told else ():
        say(line)
    where = storage_argument(study.database.url)
    name = shlex.quote(study.name)
    stopped = study.stopped
    if stopped is not None and stopped.cause != "budget":
        say(f"\nStopped after {study.finished_count()} evaluations: {stopped.reason}.")
    for line in (
        "",
        f"Study {study.name} is kept in {shown_storage(study.database.url)}. Next:",
        f"  mergefront front {name}{where} --plot front.png",
        *step_lines(study, console(sys.stderr).width),
        f"  mergefront dashboard{where}",
    ):
        say(line)


def quiet_libraries() -> AbstractContextManager[object]:
    """Without other libraries' notes to their own developers between the lines of progress."""
    return warnings.catch_warnings(action="ignore")
