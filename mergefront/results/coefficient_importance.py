"""How much each searched coefficient decides of each objective."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import optuna
from optuna.trial import TrialState

from mergefront.optimizer.search.attributes import is_outside_space
from mergefront.study.stored_study import Study

FEWEST_TRIALS = 10
"""With fewer trials inside the space an importance would be an accident."""
MOST_TRIALS = 150
"""The analysis of variance takes time as their square: 150 take 0.4 s an objective, 1,000 took 18 s."""


@dataclass(frozen=True)
class Importances:
    """Objective -> searched parameter -> its share of the objective's variation, in [0, 1], summing to 1.

    They are from ``trials`` of the ``inside`` trials inside the space.
    """

    shares: Mapping[str, Mapping[str, float]]
    trials: int
    inside: int

    @property
    def basis(self) -> str:
        """What they are from, in words."""
        if self.trials == self.inside:
            return "the trials inside the space"
        return f"{self.trials} of the {self.inside:,} trials inside the space, drawn at random"


def importances(study: Study, most: int = MOST_TRIALS) -> Importances:
    """By functional analysis of variance over random forests where scikit-learn is installed, otherwise by PED-ANOVA.

    Both as Optuna has them (Hutter, Hoos, Leyton-Brown 2014; Watanabe, Bansal, Hutter 2023). Of more than
    ``most`` trials so many are drawn, the same at each call. Trials outside the space take no part. No shares
    while there are fewer than ``FEWEST_TRIALS``, and none of an objective that all trials agree on.
    """
    inside = [trial for trial in study.trials(TrialState.COMPLETE) if not is_outside_space(trial) and trial.params]
    count = len(inside)
    if count < FEWEST_TRIALS:
        return Importances({}, count, count)
    if count > most:
        drawn = np.random.default_rng(0).choice(count, most, replace=False)
        inside = [inside[index] for index in sorted(drawn.tolist())]
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
    return Importances(found, len(inside), count)


def _lost(index: int, sign: float, trial: optuna.trial.FrozenTrial) -> float:
    """What PED-ANOVA takes: low is better."""
    return -sign * float(trial.values[index])


def _evaluator() -> optuna.importance.BaseImportanceEvaluator:
    try:
        return optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    except ImportError:
        return optuna.importance.PedAnovaImportanceEvaluator()
