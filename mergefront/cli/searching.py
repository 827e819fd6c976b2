"""What commands that search have in common: progress, the report items, what to do next."""

from __future__ import annotations

import shlex
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from mergefront.cli.logs import echo
from mergefront.cli.session import Session, shown_storage, storage_argument

if TYPE_CHECKING:
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.optimizer.scores.evaluation import Evaluation
    from mergefront.running.run import Launcher
    from mergefront.study.ready import ReadyStudy
    from mergefront.study.stored_study import Candidate, Study


def say(message: str) -> None:
    """A line for whoever watches."""
    echo(message, err=True)


def score_report(study: Study) -> int:
    """Score front and anchors on the report items, saying on stderr how far it is."""
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.running.report_items import report

    def observe(candidate: Candidate, result: Evaluation | EvaluationError, left: int) -> None:
        who = f"trial {candidate.number}" + (f" {candidate.anchor}" if candidate.anchor else "")
        what = f"failed: {result}" if isinstance(result, EvaluationError) else "done"
        say(f"report items: {who} {what}, {left} left")

    return report(study, observe)


def show_search(session: Session, ready: ReadyStudy, launcher: Launcher) -> Study:
    """Search a study that is ready, with progress, after what there is to say of it."""
    from mergefront.cli.progress import search_progress
    from mergefront.running.run import search_ready

    for note in ready.notes:
        say(note)
    with search_progress(session, ready.study) as callbacks:
        return search_ready(ready, launcher, *callbacks)


def search_file(session: Session, study_file: Path, evaluations: int | None, launcher: Launcher) -> Study:
    """Check a study file and run it with progress."""
    from mergefront.study.check import check_study
    from mergefront.study.ready import ready_to_run

    report = check_study(study_file)
    with ready_to_run(report, evaluations=evaluations, with_evaluator=launcher.name is None) as ready:
        return show_search(session, ready, launcher)


def finish(study: Study) -> None:
    """The front on stdout; where it is kept and what to do next on stderr.

    Raises ``SearchStoppedError`` where every evaluation failed: there is nothing to show.
    """
    from mergefront.cli.tables import print_front
    from mergefront.optimizer.errors import SearchStoppedError
    from mergefront.results.verdict import verdicts

    failures = study.failures()
    if failures and not study.candidates():
        raise SearchStoppedError(
            f"every evaluation of study {study.name!r} failed ({len(failures)}); the last one: {failures[-1].reason}"
        )
    print_front(study, verdicts(study))
    where = storage_argument(study.database.url)
    name = shlex.quote(study.name)
    stopped = study.stopped
    if stopped is not None and stopped.cause != "budget":
        say(f"\nStopped after {study.finished_count()} evaluations: {stopped.reason}.")
    for line in (
        "",
        f"Study {study.name} is kept in {shown_storage(study.database.url)}. Next:",
        f"  mergefront front {name}{where} --plot front.png",
        f"  mergefront export {name}{where} --knee --out merged",
        f"  mergefront dashboard{where}",
    ):
        say(line)


def quiet_libraries() -> AbstractContextManager[object]:
    """Without other libraries' notes to their own developers between the lines of progress."""
    return warnings.catch_warnings(action="ignore")
