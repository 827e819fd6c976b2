"""A sampler that is made when it is first asked for a proposal: whoever only reads or tells a study imports none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class LazySampler(BaseSampler):
    """The sampler that ``make`` returns, from the first proposal on.

    It is told nothing when a trial ends: the samplers of the registry learn from the study's trials alone.
    """

    def __init__(self, make: Callable[[], BaseSampler]) -> None:
        self._make = make

    @cached_property
    def made(self) -> BaseSampler:
        """The sampler itself."""
        return self._make()

    @property
    def sees_pending(self) -> bool:
        """Whether it looks at running trials; one that does not say is taken to."""
        return bool(getattr(self.made, "sees_pending", True))

    def reseed_rng(self) -> None:
        self.made.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.made.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.made.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.made.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.made.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing: see above."""
