"""The final report: the front and the anchors scored on items that the search never saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.evaluation import RACED, Evaluation, EvaluationRequest, checked_scores
from mergefront.study.evaluators import make_evaluator, refuse_external, tasks_of
from mergefront.study.stored_study import Candidate, Study

SPLIT = "report"

OnScored = Callable[[Candidate, "Evaluation | EvaluationError"], None]
"""Called with each candidate and its evaluation, or why there is none."""


@dataclass(frozen=True)
class ReportPlan:
    """Whom a report still has to score, and what that takes.

    ``known`` counts candidates that were scored before. Each of ``wanted`` is asked ``items``, for about ``seconds``:
    the recorded pace of each task, None where nothing was timed. ``untimed`` are the tasks that it leaves out, because
    nobody was asked them yet.
    """

    wanted: Sequence[Candidate]
    known: int
    items: int
    seconds: float | None
    untimed: Sequence[str]


def plan_report(study: Study, merges: Sequence[Candidate] | None = None) -> ReportPlan:
    """What a report on ``merges`` (by default the whole front) and on the anchors, which they are compared with, takes.

    Tasks that are no objective are asked too: what merging forgets beside the search. Raises ``UserError`` for a study
    without report items.
    """
    refuse_external(study.definition)
    tasks = tasks_of(study.definition)
    if not tasks:
        by = "the merge service's own loss" if study.definition.evaluator.asks_models else "a function of its own"
        raise UserError(f"study {study.name!r} is scored by {by}, which has no report items")
    done = study.ledger.evaluations(SPLIT)
    every = {one.digest: one for one in (*study.anchors(), *(study.front() if merges is None else merges))}
    wanted = [one for digest, one in every.items() if digest not in done]
    items = {task.name: len(task.items(SPLIT)) for task in tasks}
    searched = study.ledger.evaluations()
    pace = _seconds_per_item(tasks, "search", searched) | _seconds_per_item(tasks, SPLIT, done)
    merging = [row.seconds["merge"] for row in (*searched.values(), *done.values()) if "merge" in row.seconds]
    seconds = sum(pace[name] * count for name, count in items.items() if name in pace)
    return ReportPlan(
        wanted,
        len(every) - len(wanted),
        sum(items[task.name] for task in tasks if task.verb != "python"),  # whose items are known afterwards
        seconds + median(merging) if pace else None,
        [name for name in items if name not in pace],
    )


def _seconds_per_item(tasks: Sequence[Task], split: str, rows: Mapping[str, Evaluation]) -> dict[str, float]:
    """The median pace of each task that was asked."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows.values():
        raced = row.details.get(RACED, {}).get("asked", {})
        for task in tasks:
            if task.name in row.seconds:
                asked = raced.get(task.name) or len(task.items(split))
                found[task.name].append(row.seconds[task.name] / asked)
    return {name: median(paces) for name, paces in found.items()}


def report(study: Study, plan: ReportPlan | None = None, on_scored: OnScored = lambda candidate, result: None) -> int:
    """Score the candidates of a plan (by default the front's and the anchors) on the report items.

    Returns how many were scored. Each is kept as soon as it is; the scores never reach the sampler. Raises
    ``UserError`` for a study without report items.
    """
    plan = plan_report(study) if plan is None else plan
    if not plan.wanted:
        return 0
    names = [objective.name for objective in study.objectives]
    side = [name for name in study.definition.evaluator.tasks if name not in names]
    scored = 0
    # Candidates were scored on these models already: what only new searches are refused for must not hide them.
    definition = replace(study.definition, allow=(EVERYTHING,))
    with study.database.checkpoint_at_end(), make_evaluator(definition, lambda: study.database) as evaluator:
        for candidate in plan.wanted:
            result: Evaluation | EvaluationError
            try:
                result = evaluator.evaluate(candidate.recipe, EvaluationRequest((*names, *side), SPLIT))
                checked_scores(result, names)
            except EvaluationError as error:
                result = error
            else:
                study.ledger.record(candidate.recipe, result, SPLIT)
                scored += 1
            on_scored(candidate, result)
    return scored
