"""CMA-ES for one objective, replayed from the observed trials (``common.evolution``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.base import ReplayableSampler, Suggestion
from mergefront.optimizer.samplers.common.evolution import Evolution
from mergefront.optimizer.samplers.common.history import earlier_trials, is_inside, is_observed
from mergefront.optimizer.samplers.options import CmaEsOptions, check_arguments
from mergefront.optimizer.search.attributes import proposal_stage, proposed_params
from mergefront.optimizer.seeding import derive_seed

STAGE = "cma-es"


class CmaEsSampler(ReplayableSampler):
    """Covariance matrix adaptation on the numeric parameters, of which it needs two; others are drawn at random.

    1. The distribution starts at the best trial that others proposed (the anchors), or in the middle of the space.
    2. The sampler's own finished trials, in order and in whole generations, are told to it; those that could not be
       evaluated as the worst of their generation.
    3. The proposal is drawn from it, with a seed of the trial's own.

    Args:
        seed, search_space: as of every sampler of ours (``base.ReplayableSampler``).
        sigma: initial standard deviation, as a share of each parameter's range.
        population_size: trials per generation; by default 4 + floor(3 log d), as in ``cmaes``.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        seed: int,
        search_space: Mapping[str, BaseDistribution] | None = None,
        sigma: float = 0.2,
        population_size: int | None = None,
    ) -> None:
        check_arguments(CmaEsOptions, locals())
        super().__init__(seed=seed, search_space=search_space)
        self._sigma = sigma
        self._population_size = population_size

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._raise_error_if_multi_objective(study)
        numeric = {
            name: distribution
            for name, distribution in super().infer_relative_search_space(study, trial).items()
            if not isinstance(distribution, CategoricalDistribution)
        }
        return numeric if len(numeric) > 1 else {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._raise_error_if_multi_objective(study)
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        earlier = earlier_trials(study, trial.number)
        finished = [other for other in earlier if other.state.is_finished() and is_inside(other, encoder)]
        point = self._replayed(finished, encoder, study.direction).sample(derive_seed(self._seed, trial.number, STAGE))
        return Suggestion(STAGE, encoder.decode(encoder.snap(point[None, :])[0]))

    def _replayed(self, finished: Sequence[FrozenTrial], encoder: Encoder, direction: StudyDirection) -> Evolution:
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        own = [trial for trial in finished if proposal_stage(trial) == STAGE]
        given = [trial for trial in finished if proposal_stage(trial) != STAGE and is_observed(trial)]
        mean = np.full(encoder.dimension, 0.5)
        if given:
            # Those observed later must not move the start of generations that have been sampled.
            before = [trial for trial in given if not own or trial.number < own[0].number]
            if before:
                mean = encoder.encode(proposed_params(min(before, key=lambda trial: sign * trial.values[0])))
        evolution = Evolution(mean, self._sigma, np.ones(encoder.dimension), self._population_size)
        members = [
            (encoder.encode(proposed_params(trial)), sign * trial.values[0] if is_observed(trial) else math.nan)
            for trial in own
        ]
        size = evolution.population
        evolution.replay([members[start : start + size] for start in range(0, len(own) - size + 1, size)])
        return evolution
