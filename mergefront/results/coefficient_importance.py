"""How much each searched coefficient decides of each objective."""

from __future__ import annotations

import warnings
from functools import partial

import optuna
from optuna.trial import TrialState

from mergefront.optimizer.search.attributes import is_outside_space
from mergefront.study.stored_study import Study

FEWEST_TRIALS = 10
"""With fewer trials inside the space an importance would be an accident."""


def importances(study: Study) -> dict[str, dict[str, float]]:
    """Objective -> searched parameter -> its share of the objective's variation, in [0, 1], summing to 1.

    By functional analysis of variance over random forests where scikit-learn is installed (Hutter, Hoos,
    Leyton-Brown 2014), otherwise by PED-ANOVA (Watanabe, Bansal, Hutter 2023); both as Optuna has them.
    Trials outside the space take no part. Empty while there are fewer than ``FEWEST_TRIALS``, and without an
    objective that all trials agree on.
    """
    inside = [
        trial
        for trial in study.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not is_outside_space(trial) and trial.params
    ]
    if len(inside) < FEWEST_TRIALS:
        return {}
    copy = optuna.create_study(directions=[objective.direction for objective in study.objectives])
    copy.add_trials(inside)
    found: dict[str, dict[str, float]] = {}
    for index, objective in enumerate(study.objectives):
        if len({trial.values[index] for trial in inside}) == 1:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = optuna.importance.get_param_importances(
                copy, evaluator=_evaluator(), target=partial(_lost, index, objective.sign)
            )
        total = sum(shares.values())
        if total > 0:
            found[objective.name] = {name: float(share / total) for name, share in shares.items()}
    return found


def _lost(index: int, sign: float, trial: optuna.trial.FrozenTrial) -> float:
    """What PED-ANOVA takes: low is better."""
    return -sign * float(trial.values[index])


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    try:
        return optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    except ImportError:
        return optuna.importance.PedAnovaImportanceEvaluator()
