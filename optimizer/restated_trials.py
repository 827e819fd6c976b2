"""A racing study as its sampler is to see it: every trial with what it is estimated to score by now.

A trial is told once, with the estimate of its day; what later candidates answer says more about it. The values that
trials were told stay as they are, in the storage and for whoever looks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.evaluation import Evaluation
from mergefront.optimizer.objectives import Objective
from mergefront.optimizer.racing import standings
from mergefront.optimizer.samplers.study_view import study_view
from mergefront.optimizer.samplers.trial_attributes import STANDARD_ERRORS


def restated(
    study: Study, objectives: Sequence[Objective], evaluations: Mapping[str, Evaluation], digest_key: str
) -> Study:
    """The study with the trials' values and standard errors restated from ``evaluations``, by their recipe's digest.

    ``digest_key`` is the user attribute with a trial's digest. Standard errors are those that unasked items leave:
    the error of the items as a sample is common to all candidates and does not tell one from another.
    """
    found = dict(zip(evaluations, standings(objectives, list(evaluations.values())), strict=True))

    def shown(trial: FrozenTrial) -> FrozenTrial:
        estimates = found.get(str(trial.user_attrs.get(digest_key)))
        if estimates is None or trial.state != TrialState.COMPLETE:
            return trial
        row = [estimates[objective.name] for objective in objectives]
        anew = copy.copy(trial)
        anew.values = [one.mean for one in row]
        anew._user_attrs = {**trial.user_attrs, STANDARD_ERRORS: [one.unasked_error for one in row]}
        return anew

    return study_view(study, shown)
