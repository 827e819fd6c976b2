"""The final report: the front and the anchors scored on items that the search never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mergefront.adapters.checkpoints.configurations import EVERYTHING
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, checked_scores
from mergefront.study.evaluators import make_evaluator
from mergefront.study.stored_study import Candidate, Study

SPLIT = "report"


def report(
    study: Study,
    observe: Callable[[Candidate, Evaluation | EvaluationError, int], None] = lambda candidate, result, left: None,
) -> int:
    """Score the study's front and anchors on the report items, as far as that is not done yet.

    Tasks that are no objective are scored too: what merging forgets beside the search.

    Returns how many were scored. ``observe`` gets each candidate, its evaluation or why there is none,
    and how many are left. The scores never reach the sampler. Raises ``UserError`` for a study without
    report items.
    """
    described = study.definition.evaluator
    if not described.asks_models:
        raise UserError(f"study {study.name!r} is scored by a function of its own, which has no report items")
    names = [objective.name for objective in study.objectives]
    side = [name for name in described.tasks if name not in names]
    wanted: dict[str, Candidate] = {}
    for candidate in (*study.anchors(), *study.front()):
        if candidate.digest not in wanted and study.ledger.find(candidate.recipe, SPLIT) is None:
            wanted[candidate.digest] = candidate
    if not wanted:
        return 0
    scored = 0
    # Candidates were scored on these models already: what only new searches are refused for must not hide them.
    definition = replace(study.definition, allow=(EVERYTHING,))
    with study.database.checkpoint_at_end(), make_evaluator(definition, lambda: study.database) as evaluator:
        for index, candidate in enumerate(wanted.values()):
            result: Evaluation | EvaluationError
            try:
                result = evaluator.evaluate(candidate.recipe, EvaluationRequest((*names, *side), SPLIT))
                checked_scores(result, names)
            except EvaluationError as error:
                result = error
            else:
                study.ledger.record(candidate.recipe, result, SPLIT)
                scored += 1
            observe(candidate, result, len(wanted) - index - 1)
    return scored
