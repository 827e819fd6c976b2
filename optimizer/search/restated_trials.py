"""A racing study as its sampler is to see it: every trial with what it is estimated to score by now.

A trial is told once, with the estimate of its day; what later candidates answer says more about it. The values that
trials were told stay as they are, in the storage and for whoever looks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.racing.standings import Standings
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import RECIPE, STANDARD_ERRORS, standard_errors
from mergefront.optimizer.search.study_view import study_view


def restated(
    study: Study, objectives: Sequence[Objective], evaluations: Mapping[str, Evaluation], standings: Standings
) -> Study:
    """The study with the trials' values and standard errors restated from ``evaluations``, by their recipe's digest.

    Standard errors are those that unasked items leave: the error of the items as a sample is common to all candidates
    and does not tell one from another. Objectives that no item decides stay as they were told, with their errors.
    """
    found = dict(zip(evaluations, standings.of(objectives, list(evaluations.values())), strict=True))

    def shown(trial: FrozenTrial) -> FrozenTrial:
        digest = str(trial.user_attrs.get(RECIPE))
        if digest not in found or trial.state != TrialState.COMPLETE:
            return trial
        values, errors = list(trial.values), standard_errors(trial, len(objectives))
        for place, objective in enumerate(objectives):
            if objective.name in evaluations[digest].items:
                estimate = found[digest][objective.name]
                values[place], errors[place] = estimate.mean, estimate.unasked_error
        anew = copy.copy(trial)
        anew.values = values
        anew._user_attrs = {**trial.user_attrs, STANDARD_ERRORS: errors}
        return anew

    return study_view(study, shown)
