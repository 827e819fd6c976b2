"""What the samplers share: which space they search, how a proposal is published, in which unit scores are compared."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.unit_cube import Condition, Encoder
from mergefront.optimizer.samplers.common.blas_threads import one_blas_thread
from mergefront.optimizer.samplers.common.observed_space import observed_space, why_by_chance
from mergefront.optimizer.samplers.common.units import normaliser_for, values_of
from mergefront.optimizer.scores.objectives import Normaliser
from mergefront.optimizer.search.attributes import (
    is_outside_space,
    proposed_params,
    read_search_space,
    write_proposal,
)
from mergefront.optimizer.seeding import derive_seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """One proposal: the stage that made it, its parameters, and the hypervolume it is expected to add if known."""

    stage: str
    params: dict[str, Any]
    improvement: float | None = None


class ReplayableSampler(BaseSampler):
    """A sampler whose proposals depend on the seed, the trial's number and the earlier trials, and on nothing else.

    A study that was killed and resumed, in any process, gets the proposals that it would have got. A subclass
    implements ``_propose``. The threads of one process (``n_jobs``) propose in turn, so that each sees the others'
    points; where a trial proposes after a later one, it leaves that one's point to it.

    Args:
        seed: None draws one, and gives up repeatability.
        search_space: the distributions, when they are known beforehand; otherwise those stored with the study
            (``attributes.write_search_space``), otherwise those common to all finished trials (``observed_space``); a
            warning names what is drawn at random beside them.
        ranges: (worst, best) of every objective in its own unit, for normalising; None, for one objective or for
            all, means from the anchors.
    """

    sees_pending = True
    """Whether a proposal depends on trials that are running: then workers propose in turn."""

    def __init__(
        self,
        *,
        seed: int | None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        ranges: Sequence[tuple[float, float] | None] | None = None,
    ) -> None:
        self._seed = secrets.randbits(62) if seed is None else int(seed)
        self._search_space = None if search_space is None else dict(search_space)
        self._ranges = ranges
        self._turn = _Turn()
        self._by_chance: set[str] = set()
        """Parameters that were warned of."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        space = self._declared_space(study)
        if space is None:
            space = self._observed_space(study, trial)
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        encoder = Encoder(search_space, self._conditions(study, trial))
        published = proposed_params(trial)
        if encoder.contains(published):
            # The trial of a process that died after proposing: the proposal stands.
            return {name: published[name] for name in search_space if name in published}
        with self._turn.lock, one_blas_thread():
            suggestion = self._propose(study, trial, encoder)
            write_proposal(study, trial, suggestion.stage, suggestion.params, suggestion.improvement)
        return suggestion.params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._warn_of_chance(study, trial, param_name, param_distribution)
        rng = np.random.default_rng(derive_seed(self._seed, trial.number, "independent", param_name))
        encoder = Encoder({param_name: param_distribution})
        return encoder.decode(encoder.from_uniform(rng.random((1, 1)))[0])[param_name]

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        """A value for every parameter of the encoder's space."""
        raise NotImplementedError

    def _declared_space(self, study: Study) -> dict[str, BaseDistribution] | None:
        return self._search_space if self._search_space is not None else read_search_space(study)

    def _observed_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The space where none was declared: what all earlier finished trials have in common."""
        return observed_space(finished_before(study, trial))

    def _conditions(self, study: Study, trial: FrozenTrial) -> Mapping[str, Condition]:
        """On what parameters of the inferred space depend, where the sampler knows what to make of it."""
        return {}

    def _warn_of_chance(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> None:
        """Say once of a parameter that it is drawn at random although earlier trials have it."""
        if name in self._by_chance or distribution.single() or self._declared_space(study) is not None:
            return
        reason = why_by_chance(finished_before(study, trial), name, distribution)
        if reason is not None:
            self._by_chance.add(name)
            logger.warning("parameter %r is drawn at random from trial %d on: %s", name, trial.number, reason)

    def _normaliser(self, study: Study, anchors: Sequence[FrozenTrial]) -> Normaliser:
        """The common unit of the objectives, by the anchors' values except where the sampler was given ranges."""
        check_length("ranges", self._ranges, study)
        return normaliser_for(maximised(study), values_of(anchors, len(study.directions)), self._ranges)


class _Turn:
    """A lock; a copy of the sampler has one of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Turn], tuple[()]]:
        return _Turn, ()


def finished_before(study: Study, trial: FrozenTrial) -> list[FrozenTrial]:
    """The earlier trials that say what the space is, in order of number."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [other for other in finished if other.number < trial.number and not is_outside_space(other)]


def maximised(study: Study) -> list[bool]:
    """Of every objective, whether it is maximised."""
    return [direction == StudyDirection.MAXIMIZE for direction in study.directions]


def check_length(name: str, given: Sequence[Any] | None, study: Study) -> None:
    """Raises ``UserError`` unless an argument has one entry per objective."""
    if given is not None and len(given) != len(study.directions):
        raise UserError(f"{name} has {len(given)} entries, but the study has {len(study.directions)} objectives")
