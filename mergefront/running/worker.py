"""One process that works on a stored study."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.optimizer.search.loop import TrialOutcome, run_search
from mergefront.storage import DEFAULT_STORAGE
from mergefront.study.evaluators import make_evaluator
from mergefront.study.preflight.budget import checked_budget
from mergefront.study.stored_study import Study, as_study

OnTrialEnd = Callable[["TrialOutcome"], None]
OnTrialStart = Callable[[int, "str | None"], None]
"""Called with the trial's number and, of an anchor, its name."""


def nothing(*_: Any) -> None:
    """A callback that does nothing."""


def work(
    study: str | Study,
    *,
    storage: str = DEFAULT_STORAGE,
    root: str | Path | None = None,
    device: str | None = None,
    evaluator: Evaluator | None = None,
    on_trial_end: OnTrialEnd = nothing,
    on_trial_start: OnTrialStart = nothing,
    should_stop: Callable[[], bool] = lambda: False,
) -> Study:
    """One more process on a stored study, here or on another machine, until its budget is spent.

    Workers share the budget and never overshoot it; what a worker leaves unfinished when it dies is
    taken over by another, once. ``root`` is the folder of the study's files on this machine, ``device`` overrides the
    study's ("cuda:1"); ``evaluator`` scores for a study of a Python function, which no definition can name;
    ``should_stop`` is asked between two trials. Raises ``UserError`` where the study's trials fit into no memory here.
    """
    study = as_study(study, storage=storage, root=root)
    definition, database = study.definition, study.database
    checked_budget(definition, study.record.evaluations)
    if device is not None:
        definition = replace(definition, runtime={**definition.runtime, "device": device})
    scoring: AbstractContextManager[Evaluator] = (
        nullcontext(evaluator) if evaluator is not None else make_evaluator(definition, lambda: database)
    )
    with database.checkpoint_at_end(), scoring as made:
        run_search(
            study.plan,
            study.optuna,
            study.ledger,
            made,
            on_trial_end,
            on_trial_start,
            should_stop,
            wait_for_others=True,
        )
    return study.refresh()
