"""Evo-Merging as a plain Optuna sampler: merges of many LoRAs through signed weights and densities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.base import ReplayableSampler, Suggestion, check_length, maximised
from mergefront.optimizer.samplers.common.history import earlier_trials, is_observed
from mergefront.optimizer.samplers.common.last_result import LastResult
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients, read_coefficients
from mergefront.optimizer.samplers.common.units import normalise, values_of
from mergefront.optimizer.samplers.evo_merging.pool_history import Penalties, PoolTrial, prefilter
from mergefront.optimizer.samplers.evo_merging.pool_search import DESIGN, PoolSearch, PoolState
from mergefront.optimizer.samplers.evo_merging.staged_evolution import STAGES, EvolutionOptions, StagedEvolution
from mergefront.optimizer.samplers.options import CovarianceShape, EvoMergingOptions, EvoMergingVariant, check_arguments
from mergefront.optimizer.search.attributes import (
    KEPT_LORAS,
    is_anchor,
    is_outside_space,
    proposal_stage,
    proposed_params,
)
from mergefront.optimizer.seeding import derive_seed

Points = dict[tuple[tuple[str, Any], ...], Array | None]

PAPER_PENALTY = 0.05
"""Both penalties of arXiv 2509.12951."""
PREFILTER_ABOVE = 32
"""Pools of more LoRAs than this are reduced to as many by default, in the default variant. Chosen by hand."""


class EvoMergingSampler(ReplayableSampler):
    """Search for the merge of a pool of LoRAs (Evo-Merging, arXiv 2509.12951), and for numbers in general.

    >>> study = optuna.create_study(direction="minimize", sampler=EvoMergingSampler(seed=0))

    Parameters called ``weight[NAME]`` and ``density[NAME]`` are what they are called; others are searched with the
    weights, categorical ones at random. The default variant proposes a trial in these steps:

    1. No LoRA, each LoRA alone and the uniform mix, where they were not evaluated (the anchors of a mergefront study
       are these); of a large pool the ``top`` LoRAs by their own loss are kept.
    2. Several objectives become one loss: normalised by the anchors and added up by ``preferences``.
    3. A Gaussian process of the loss is fitted near the best trial, and its minimum inside a trust region is
       proposed. The region grows on success and shrinks on failure (``trust_region``).
    4. Weights are searched first. When they have converged, the density of each LoRA that matters is probed once;
       from then on weights alone and everything together take turns (``pool_search``).

    The others are evolution strategies (``staged_evolution``):

    - "paper": the published two stages. CMA-ES on densities at weights 1 / N, then on weights at the best densities;
    - "lorahub": CMA-ES on weights alone;
    - "joint": CMA-ES on densities and weights at once.

    Proposals are replayable (``base.ReplayableSampler``), several workers may ask at once, failed trials count as the
    worst.

    Args:
        seed, search_space, ranges: as of every sampler of ours (``base.ReplayableSampler``).
        variant: "default", "paper", "lorahub" or "joint"; see above.
        preferences: how much each of several objectives counts, in any unit; equally by default. Objectives are
            normalised by the anchors observed before the first proposal (or by ``ranges``) and added up.
        top: how many LoRAs to keep, by their loss alone. By default all, except that the default
            variant keeps 32 of larger pools.
        density_penalty: factor of mean |density|, in the unit of a single objective, or of normalised ones (best
            minus worst anchor is 1). The paper's 0.05 by default, 0 in the default variant.
        weight_penalty: likewise for mean |weight|.
        first_stage: trials of the paper's first stage.
        patience: generations without gain after which the first stage is left early; 0 never does.
        population: trials per generation of CMA-ES.
        sigma: initial step of CMA-ES, in the coefficients' own unit.
        covariance: of CMA-ES; "auto" is "separable" above 30 dimensions, otherwise "full".
        densities: whether the default variant searches densities at all.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        seed: int | None = 0,
        variant: EvoMergingVariant = "default",
        search_space: Mapping[str, BaseDistribution] | None = None,
        preferences: Sequence[float] | None = None,
        ranges: Sequence[tuple[float, float] | None] | None = None,
        top: int | None = None,
        density_penalty: float | None = None,
        weight_penalty: float | None = None,
        first_stage: int = 400,
        patience: int = 0,
        population: int = 20,
        sigma: float = 0.05,
        covariance: CovarianceShape = "auto",
        densities: bool = True,
    ) -> None:
        check_arguments(EvoMergingOptions, {**locals(), "preferences": None})  # text in study files only; checked below
        shares = [1.0] if preferences is None else list(preferences)
        if not (all(0.0 <= share < math.inf for share in shares) and sum(shares) > 0.0):
            raise UserError(f"preferences {shares!r} must be numbers of at least 0, not all 0")
        super().__init__(seed=seed, search_space=search_space, ranges=ranges)
        self._preferences = preferences
        self._top = PREFILTER_ABOVE if top is None and variant == "default" else top
        fallback = 0.0 if variant == "default" else PAPER_PENALTY
        penalties = Penalties(
            fallback if density_penalty is None else density_penalty,
            fallback if weight_penalty is None else weight_penalty,
        )
        # What the space means, and its points by their parameters.
        self._space = LastResult[tuple[Coefficients, Points]]()
        self._search: PoolSearch | StagedEvolution
        if variant == "default":
            self._search = PoolSearch(penalties, densities=densities)
        else:
            separable = {"auto": None, "full": False, "separable": True}[covariance]
            options = EvolutionOptions(population, sigma, first_stage, patience, separable)
            self._search = StagedEvolution(STAGES[variant], options, penalties)

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        numeric = {name: d for name, d in encoder.space.items() if not isinstance(d, CategoricalDistribution)}
        stage, params = self._numeric_point(study, trial, numeric) if numeric else ("random", {})
        for name, distribution in encoder.space.items():
            if name not in params:
                params[name] = self.sample_independent(study, trial, name, distribution)
        return Suggestion(stage, params)

    def _numeric_point(
        self, study: Study, trial: FrozenTrial, numeric: Mapping[str, BaseDistribution]
    ) -> tuple[str, dict[str, Any]]:
        coefficients, points = self._space.of(dict(numeric), lambda: (read_coefficients(numeric), {}))
        others = earlier_trials(study, trial.number)
        trials = self._trials(study, others, coefficients.encoder, points)
        kept = self._kept(others, trials, coefficients)
        if isinstance(self._search, StagedEvolution):
            own = [other for other in trials if other.stage is not None]
            seed = derive_seed(self._seed, trial.number, "evolution")
            stage, point = self._search.propose(coefficients, kept, own, seed)
        else:
            running = any(other.state == TrialState.RUNNING for other in others)
            state = PoolState(coefficients, tuple(trials), kept, running, self._seed, trial.number)
            stage, point = self._search.propose(state)
        if len(kept) < len(coefficients.loras):
            study._storage.set_trial_system_attr(trial._trial_id, KEPT_LORAS, list(kept))
        return stage, coefficients.encoder.decode(point)

    def _kept(
        self, others: Sequence[FrozenTrial], trials: Sequence[PoolTrial], coefficients: Coefficients
    ) -> tuple[str, ...]:
        """The LoRAs that are searched. A decision stands: later scores must not change the dimensions."""
        if self._top is None or len(coefficients.loras) <= self._top:
            return coefficients.loras
        for other in others:
            if KEPT_LORAS in other.system_attrs and proposal_stage(other) != DESIGN:
                return tuple(str(name) for name in other.system_attrs[KEPT_LORAS])
        return prefilter(coefficients, trials, self._top)

    def _trials(self, study: Study, others: Sequence[FrozenTrial], encoder: Encoder, points: Points) -> list[PoolTrial]:
        """The earlier trials that are points of the space, in order of number."""
        placed = [
            (other, _point(proposed_params(other), encoder, points)) for other in others if not is_outside_space(other)
        ]
        inside = [(other, point) for other, point in placed if point is not None]
        losses = self._losses(study, others, [other for other, _ in inside])
        return [
            PoolTrial(
                other.number,
                point,
                loss,
                other.state.is_finished(),
                None if is_anchor(other) else proposal_stage(other),
            )
            for (other, point), loss in zip(inside, losses, strict=True)
        ]

    def _losses(self, study: Study, others: Sequence[FrozenTrial], inside: Sequence[FrozenTrial]) -> list[float]:
        """One number to minimise per trial, NaN where there is none."""
        m = len(study.directions)
        observed = [i for i, trial in enumerate(inside) if is_observed(trial)]
        losses = np.full(len(inside), math.nan)
        if not observed:
            return losses.tolist()
        values = values_of([inside[i] for i in observed], m)
        if m == 1:
            losses[observed] = -values[:, 0] if maximised(study)[0] else values[:, 0]
            return losses.tolist()
        check_length("preferences", self._preferences, study)
        shares = np.array([1.0] * m if self._preferences is None else list(self._preferences), dtype=float)
        reference = _unit_trials(others) or [inside[i] for i in observed[: m + 1]]
        normalised = normalise(self._normaliser(study, reference), values)
        losses[observed] = (1.0 - normalised) @ (shares / shares.sum())
        return losses.tolist()


def _point(params: Mapping[str, Any], encoder: Encoder, known: Points) -> Array | None:
    """The parameters as a point, None when they are not in the space; encoded once per distinct parameters."""
    key = tuple(params.items())
    if key not in known:
        known[key] = encoder.snap(encoder.encode(params)[None, :])[0] if encoder.contains(params) else None
    return known[key]


def _unit_trials(others: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The observed anchors by which objectives are normalised: those numbered before the first proposal."""
    own = [other.number for other in others if not is_anchor(other) and proposal_stage(other) is not None]
    first = min(own, default=math.inf)
    return [other for other in others if is_anchor(other) and is_observed(other) and other.number < first]
