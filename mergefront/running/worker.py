"""One process that works on a stored study, and what the search loop needs to know of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.optimizer.search.stopping import StopRule
from mergefront.study.stored_study import DEFAULT_STORAGE, Study, load_study
from mergefront.study.warm_start import seeds_of

if TYPE_CHECKING:
    from mergefront.optimizer.search.loop import SearchPlan, TrialOutcome


def nothing(*_: Any) -> None:
    """Observes nothing."""


def work(
    study: str | Study,
    *,
    storage: str = DEFAULT_STORAGE,
    device: str | None = None,
    evaluator: Evaluator | None = None,
    observe: Callable[[TrialOutcome], None] = nothing,
    before: Callable[[int, str | None], None] = nothing,
    should_stop: Callable[[], bool] = lambda: False,
) -> Study:
    """One more process on a stored study, here or on another machine, until its budget is spent.

    Workers share the budget and never overshoot it; what a worker leaves unfinished when it dies is
    taken over by another, once. ``device`` overrides the study's ("cuda:1"); ``evaluator`` scores for a study of a
    Python function, which no definition can name; ``should_stop`` is asked between two trials.
    """
    from mergefront.optimizer.search.loop import run_search
    from mergefront.study.evaluators import make_evaluator

    if isinstance(study, str):
        study = load_study(study, storage=storage)
    stored = study.record.definition
    runtime = {**stored["runtime"], **({} if device is None else {"device": device})}
    scoring: AbstractContextManager[Evaluator] = (
        nullcontext(evaluator)
        if evaluator is not None
        else make_evaluator(stored["evaluator"], study.space, Path(study.record.root), runtime, study.database.url)
    )
    with scoring as made:
        plan = plan_of(study, study.record.evaluations)
        run_search(plan, study.optuna, study.ledger, made, observe, before, should_stop, wait_for_others=True)
    return study.refresh()


def plan_of(study: Study, budget: int) -> SearchPlan:
    """What the search loop needs to know of a study."""
    from mergefront.optimizer.recipes.anchors import anchors
    from mergefront.optimizer.search.loop import SearchPlan

    seed = study.record.definition["seed"]
    return SearchPlan(
        study.space,
        study.objectives,
        tuple(anchors(study.space)),
        budget,
        study.racing,
        seed,
        stop=StopRule.read(study.record.definition["stop"]),
        constraints=study.constraints,
        seeds=seeds_of(study),
    )
