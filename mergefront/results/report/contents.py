"""What the report of a study says, as plain data; ``page`` writes it as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.adapters.tasks.task import Task
from mergefront.formatting import trials
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.report.detectable import detectable_json
from mergefront.results.verdict import Verdict, front_merges, judged, normalised_rows
from mergefront.study.evaluators import tasks_of
from mergefront.study.stored_study import Candidate, Study, rounded


@dataclass(frozen=True)
class Contents:
    """Everything that the page says.

    ``rows`` are evaluations of ``front`` (its merges) and ``anchors`` by trial number, on ``split``: "report" as soon
    as its items were asked; ``normalised`` has their objectives in the unit of its anchors. ``judged`` is the verdict
    on the same; None where no merge is on the front. ``side_tasks`` are the tasks that are no objective: what is
    measured beside the search, to see what merging forgets.
    """

    study: Study
    front: Sequence[Candidate]
    anchors: Sequence[Candidate]
    split: str
    rows: Mapping[int, Evaluation]
    normalised: Mapping[int, Sequence[float]]
    judged: Verdict | None
    side_tasks: Sequence[Objective]
    warnings: Sequence[str]


def contents(study: Study) -> Contents:
    """Collect what the page says. Raises ``UserError`` for a study without a finished evaluation."""
    if not study.candidates():
        raise UserError(f"study {study.name!r} has no finished evaluation yet; run or resume it first")
    anchors, front = study.anchors(), front_merges(study)
    verdict = judged(study)
    if verdict is not None:
        split, rows = verdict.split, verdict.rows
    else:
        rows = study.evaluations_on("report", anchors)
        split = "report" if rows else "search"
        rows = rows or study.evaluations_on("search", anchors)
    tasks = tasks_of(study.definition)
    searched = {objective.name for objective in study.objectives}
    return Contents(
        study,
        front,
        anchors,
        split,
        rows,
        normalised_rows(study, rows)[1],
        verdict,
        [Objective(task.name, task.direction) for task in tasks if task.name not in searched],
        _warnings(study, split, [one.number for one in front if one.number not in rows], tasks),
    )


def _warnings(study: Study, split: str, unscored: list[int], tasks: Sequence[Task]) -> list[str]:
    said = []
    if split != "report":
        remedy = "run `mergefront report` first" if study.definition.evaluator.tasks else ""
        said.append(
            "The scores below are those that the search optimised on: the best of many trials looks better than it "
            f"is{f' ({remedy})' if remedy else ''}."
        )
    elif unscored:
        said.append(f"Not scored on the report items: {trials(unscored)} of the front.")
    said += [text for task in tasks if (text := getattr(task, "announcement", None)) is not None]
    return said


def report_json(study: Study) -> dict[str, Any]:
    """What ``mergefront report NAME --json`` prints: what ``front --json`` does, and the scores on the report items."""
    scored = study.evaluations_on("report", (*study.anchors(), *front_merges(study)))
    rows = [
        {"trial": trial, "scores": rounded(row.scores), "standard_errors": rounded(row.standard_errors)}
        for trial, row in sorted(scored.items())
    ]
    return {**study.to_json(), **detectable_json(study), "report": rows}
