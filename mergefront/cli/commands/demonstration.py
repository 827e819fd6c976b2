"""``mergefront demo``: the main job from beginning to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mergefront.optimizer.errors import UserError

if TYPE_CHECKING:
    from mergefront.cli.session import Session
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.optimizer.scores.evaluation import Evaluation
    from mergefront.study.stored_study import Candidate, Study


def run_demo(session: Session, directory: Path, seed: int) -> None:
    """Build the example in ``directory``, search it, score the front on report items, show and keep the results."""
    from mergefront.cli.commands.searches import finish, search_file
    from mergefront.demo import write_demo
    from mergefront.demo.threads import one_thread
    from mergefront.study.check import check_study

    _say(f"A tiny base model, experts trained from it, and a search over their merges, in {directory}.")
    with one_thread():
        study_file = write_demo(directory, seed=seed, progress=_say)
        definition = check_study(study_file).definition_or_raise()
        study = search_file(session, definition, study_file, definition.evaluations)
        score_report(study)
    written = _write_results(study, directory)
    finish(study)
    _say(f"\nWritten: {', '.join(str(path) for path in written)}. The study file is {study_file}.")


def score_report(study: Study) -> int:
    """Score front and anchors on the report items, saying on stderr how far it is."""
    from mergefront.optimizer.errors import EvaluationError
    from mergefront.running.report_items import report

    def observe(candidate: Candidate, result: Evaluation | EvaluationError, left: int) -> None:
        who = f"trial {candidate.number}" + (f" {candidate.anchor}" if candidate.anchor else "")
        what = f"failed: {result}" if isinstance(result, EvaluationError) else "done"
        _say(f"report items: {who} {what}, {left} left")

    return report(study, observe)


def _write_results(study: Study, directory: Path) -> list[Path]:
    from mergefront.results.plots.front import save_front

    written = [directory / "front.json"]
    written[0].write_text(json.dumps(study.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        written.append(save_front(study, directory / "front.png"))
    except UserError as error:  # without the extra the search was still worth it
        _say(f"No plot: {error}")
    return written


def _say(message: str) -> None:
    click.echo(message, err=True)
