"""Optuna's own samplers, made repeatable and shown only what they can learn from.

An Optuna sampler draws from one long-lived generator, whose state is not stored: with a fixed seed, a resumed study
gets the points of its beginning again. Here the inner sampler is made anew for every trial, with its own seed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.samplers._ga import BaseGASampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.base import ReplayableSampler, Suggestion, maximised
from mergefront.optimizer.samplers.common.history import is_observed
from mergefront.optimizer.samplers.common.initial_design import sobol_points
from mergefront.optimizer.samplers.common.representatives import representatives
from mergefront.optimizer.search.attributes import is_anchor, is_feasible, is_outside_space
from mergefront.optimizer.search.study_view import study_view
from mergefront.optimizer.seeding import derive_seed

logger = logging.getLogger(__name__)


class OptunaSampler(ReplayableSampler):
    """One of Optuna's samplers, seeded by the trial's number.

    1. The inner sampler is made anew, with a seed derived from the study's and the trial's number.
    2. It is shown the study without the trials outside the space, with failed trials as pruned ones, from which TPE
       learns and others do not; genetic samplers see anchors in the first generation.
    3. It is shown at most ``most_told`` finished trials, which represent all (``representatives``); a warning says so.
    4. It samples the parameters together (``joint``), or one by one with a seed each.

    Args:
        make: the inner sampler from a seed.
        seed: of the study.
        search_space: given to the inner sampler when it samples parameters together (``joint``), so that
            it need not wait for a finished trial to learn them.
        joint: whether the inner sampler samples the parameters of a known space together.
        most_told: how many finished trials it is shown at most, by the number of objectives from 1 on; empty means all.
        refusal: why it cannot propose for so many objectives, or None.
        sees_pending: whether the inner sampler looks at running trials.

    Proposals raise ``UserError`` where there is a refusal.
    """

    def __init__(
        self,
        make: Callable[[int], BaseSampler],
        *,
        seed: int,
        search_space: Mapping[str, BaseDistribution] | None = None,
        joint: bool = True,
        most_told: Sequence[int] = (),
        refusal: Callable[[int], str | None] = lambda objectives: None,
        sees_pending: bool = True,
    ) -> None:
        super().__init__(seed=seed, search_space=search_space)
        self._make = make
        self._joint = joint
        self._most_told = tuple(most_told)
        self._refusal = refusal
        self.sees_pending = sees_pending
        self._warned = False

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._joint and self._declared_space(study) is not None:
            return super().infer_relative_search_space(study, trial)
        inner = self._inner(trial)
        return inner.infer_relative_search_space(_view(study, inner), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        inner = self._inner(trial)
        return inner.sample_relative(self._limited(_view(study, inner), trial), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        # The name is part of the seed: parameters sampled one by one must not all get the same random number.
        inner = self._inner(trial, param_name)
        return inner.sample_independent(_view(study, inner), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        refusal = self._refusal(len(study.directions))
        if refusal is not None:
            raise UserError(refusal)
        inner = self._inner(trial)
        inner.before_trial(_view(study, inner), trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        inner = self._inner(trial)
        inner.after_trial(_view(study, inner), trial, state, values)

    def _limited(self, study: Study, trial: FrozenTrial) -> Study:
        """The study with no more finished trials than step 3 says; those of values that are not finite go first."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        most = self._most_told[len(study.directions) - 1] if self._most_told else len(finished)
        if len(finished) <= most:
            return study
        if not self._warned:
            self._warned = True
            logger.warning("from trial %d on, proposals are made from %d of the finished trials", trial.number, most)
        observed = [one for one in finished if is_observed(one)]
        if len(observed) > most:
            sign = np.where(maximised(study), 1.0, -1.0)
            values = sign * np.array([one.values for one in observed], dtype=float)
            kept, _ = representatives(values, np.array([is_feasible(one) for one in observed]), most)
            observed = [observed[i] for i in kept]
        numbers = {one.number for one in observed}
        return study_view(study, lambda one: one if one.number in numbers or one.state != TrialState.COMPLETE else None)

    def _inner(self, trial: FrozenTrial, *purpose: str) -> BaseSampler:
        # Optuna hands seeds to numpy's RandomState, which takes 32 bits.
        return self._make(derive_seed(self._seed, trial.number, *purpose) % 2**32)


class SobolSampler(ReplayableSampler):
    """A scrambled Sobol sequence: trial n gets its point n.

    Args:
        seed: of the study.
        search_space: the distributions, when they are known beforehand; otherwise those stored with the study,
            otherwise those of the first finished trial, in its order.
    """

    sees_pending = False

    def _observed_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        # The first trial shows which parameters there are; later ones keep to its order.
        first = next((t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE), None)
        widened = super()._observed_space(study, trial)
        return {} if first is None else {name: widened.get(name, d) for name, d in first.distributions.items()}

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        return Suggestion("sobol", encoder.decode(sobol_points(encoder, self._seed, trial.number, 1)[0]))


def _view(study: Study, inner: BaseSampler) -> Study:
    """The study as step 2 of ``OptunaSampler`` says."""
    key = inner._get_generation_key() if isinstance(inner, BaseGASampler) else None

    def shown(trial: FrozenTrial) -> FrozenTrial | None:
        if is_outside_space(trial):
            return None
        if trial.state == TrialState.FAIL:
            pruned = copy.copy(trial)
            pruned.state = TrialState.PRUNED
            return pruned
        if key is None or key in trial.system_attrs or not is_anchor(trial):
            return trial
        # Genetic samplers only see trials that carry their generation; anchors join the first one.
        joined = copy.copy(trial)
        joined._system_attrs = {**trial.system_attrs, key: 0}
        return joined

    return study_view(study, shown)
