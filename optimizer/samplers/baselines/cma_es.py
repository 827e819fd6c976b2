"""CMA-ES for one objective, replayed from the told trials.

Optuna's CmaEsSampler keeps its state as a pickle in the database and loads it again, so that whoever can write the
database can run code. Here the state is recomputed: telling the same generations to a fresh ``cmaes.CMA``
gives the same distribution, in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cmaes import CMA
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.samplers.common.encoding import Encoder
from mergefront.optimizer.samplers.common.history import is_told
from mergefront.optimizer.search.attributes import (
    is_outside_space,
    proposal_stage,
    proposed_params,
    read_search_space,
    write_proposal,
)
from mergefront.optimizer.seeding import derive_seed

STAGE = "cma-es"


class CmaEsSampler(BaseSampler):
    """Covariance matrix adaptation on the numeric parameters, of which it needs two; others are drawn at random.

    Args:
        seed: of the study.
        search_space: when known beforehand.
        sigma: initial standard deviation, as a share of each parameter's range.
        population_size: by default 4 + floor(3 log d).

    The search starts from the best trial told by others (the anchors), or from the middle of the space.
    """

    def __init__(
        self,
        *,
        seed: int,
        search_space: Mapping[str, BaseDistribution] | None = None,
        sigma: float = 0.2,
        population_size: int | None = None,
    ) -> None:
        if sigma <= 0.0:
            raise UserError(f"sigma {sigma} must be positive")
        self._seed = seed
        self._search_space = None if search_space is None else dict(search_space)
        self._sigma = sigma
        self._population_size = population_size

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        _check_single_objective(study)
        space = self._search_space if self._search_space is not None else read_search_space(study)
        if space is None:
            finished = [
                other
                for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                if other.number < trial.number and not is_outside_space(other)
            ]
            space = intersection_search_space(finished)
        return {
            name: distribution
            for name, distribution in space.items()
            if not distribution.single() and not isinstance(distribution, CategoricalDistribution)
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        _check_single_objective(study)
        numeric = {
            name: distribution
            for name, distribution in search_space.items()
            if not isinstance(distribution, CategoricalDistribution)
        }
        if len(numeric) < 2:
            return {}
        encoder = Encoder(numeric)
        told = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.number < trial.number
            and is_told(other)
            and not is_outside_space(other)
            and encoder.contains(proposed_params(other))
        ]
        optimiser = self._replayed(sorted(told, key=lambda other: other.number), encoder, study.direction)
        optimiser.reseed_rng(derive_seed(self._seed, trial.number, STAGE) % 2**32)
        params = encoder.decode(encoder.snap(optimiser.ask()[None, :])[0])
        write_proposal(study, trial, STAGE, params)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        _check_single_objective(study)
        rng = np.random.default_rng(derive_seed(self._seed, trial.number, "independent", param_name))
        encoder = Encoder({param_name: param_distribution})
        return encoder.decode(encoder.from_uniform(rng.random((1, 1)))[0])[param_name]

    def _replayed(self, told: Sequence[FrozenTrial], encoder: Encoder, direction: StudyDirection) -> CMA:
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        own = [trial for trial in told if proposal_stage(trial) == STAGE]
        given = [trial for trial in told if proposal_stage(trial) != STAGE]
        mean = np.full(encoder.dimension, 0.5)
        if given:
            # Those told later must not move the start of generations that have been sampled.
            before = [trial for trial in given if not own or trial.number < own[0].number]
            if before:
                mean = encoder.encode(proposed_params(min(before, key=lambda trial: sign * trial.values[0])))
        optimiser = CMA(
            mean=mean,
            sigma=self._sigma,
            bounds=np.array([[0.0, 1.0]] * encoder.dimension),
            population_size=self._population_size,
            seed=0,
        )
        size = optimiser.population_size
        for start in range(0, len(own) - size + 1, size):
            generation = own[start : start + size]
            optimiser.tell([(encoder.encode(proposed_params(t)), sign * t.values[0]) for t in generation])
        return optimiser


def _check_single_objective(study: Study) -> None:
    if len(study.directions) > 1:
        # Optuna's contract asks for a ValueError here; a study file is checked before (``registry.check_sampler``).
        raise ValueError(f"sampler 'cma-es' does one objective; the study has {len(study.directions)}")
