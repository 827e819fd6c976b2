"""MM-MO as a plain Optuna sampler."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.recipes.merge_rule import UNKNOWN, MergeRule
from mergefront.optimizer.recipes.unit_cube import Condition, Encoder
from mergefront.optimizer.samplers.base import ReplayableSampler, Suggestion, check_length, finished_before, maximised
from mergefront.optimizer.samplers.common.history import (
    History,
    earlier_trials,
    is_inside,
    later_trials,
    points_of,
    read_history,
)
from mergefront.optimizer.samplers.common.initial_design import startup_size
from mergefront.optimizer.samplers.common.last_result import LastResult
from mergefront.optimizer.samplers.common.observed_space import conditional_space
from mergefront.optimizer.samplers.common.representatives import limited
from mergefront.optimizer.samplers.common.units import normalise, values_of
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, MATERN_WITH_TREND, Kernel
from mergefront.optimizer.samplers.gaussian_process.posterior import Surrogate
from mergefront.optimizer.samplers.mmmo.feasibility import Feasibility, Violations, evaluability, fit_violations
from mergefront.optimizer.samplers.mmmo.merge_features import MergeFeatures
from mergefront.optimizer.samplers.mmmo.optimize_acqf import BUDGETS, FAST_WITH_NOISE
from mergefront.optimizer.samplers.mmmo.proposals import (
    HYPERVOLUME_OBJECTIVES,
    Crossover,
    Observations,
    Proposed,
    crossed,
    fit,
    fresh_point,
    propose,
    propose_paper_round,
)
from mergefront.optimizer.samplers.options import (
    Budget,
    FisherScreen,
    MMMOOptions,
    MMMOVariant,
    Trend,
    Unexplained,
    check_arguments,
)
from mergefront.optimizer.scores.objectives import REFERENCE
from mergefront.optimizer.search.attributes import (
    is_anchor,
    is_feasible,
    is_outside_space,
    standard_errors,
    violation_errors,
)
from mergefront.optimizer.search.item_margins import margins_of
from mergefront.optimizer.seeding import derive_seed

logger = logging.getLogger(__name__)

MOST_FAILED = 160
"""So many trials that could not be evaluated are learnt from, the last ones: half of what the others may be."""
MOST_WEIGHTS_ADDED = 4
"""So many weights that are added have a quadratic trend, and shares of right answers are modelled by their items.
Three of LoRAs were measured to gain by the trend early on, five of small networks not to
(docs/benchmarks/search-trend.md)."""
TREND_ALONE = 16
"""Trials before this one are proposed with the trend. Later ones are so in turn with a model that has none, which finds
what a wrong trend would leave out for good: one run of forty ended 22% lower without that (ibid.)."""
PAPER_STARTUP, PAPER_BATCH = 10, 5
"""Of the released program of arXiv 2407.00487."""


class MMMOSampler(ReplayableSampler):
    """Multi-objective Bayesian optimisation of model merges (MM-MO, arXiv 2407.00487), and of anything else.

    >>> study = optuna.create_study(directions=["maximize"] * 3, sampler=MMMOSampler(seed=0))

    The default variant proposes a trial in these steps:

    1. While there are ``anchors`` left, the next of them; then ``n_startup`` scrambled Sobol points.
    2. Objectives are normalised by the anchors (0 is the worst, 1 the best) and maximised; collapsed merges, far
       below the reference point, are pulled in (``units``).
    3. One Gaussian process per objective is fitted to what the merge makes of the coefficients (``merge_features``),
       one more per constraint to its violations, and one to which points could be evaluated, where some could not:
       trials that failed, were pruned, or have a value that is not finite. They know 320 observed trials at most, which
       represent all when there are more, and learn lengthscales from 150 (``representatives``).
    4. The acquisition is the log noisy expected hypervolume improvement (``acquisition``), plus the log probability
       that the constraints hold and that the point can be evaluated. With one objective it is noisy expected
       improvement; more than four objectives are scalarised at random.
    5. It is climbed from the best of Sobol points and of small changes of the elites (``optimize_acqf``); merges that
       were proposed before are left out.
    6. The best candidate is proposed.

    The variant "paper" takes steps 1 to 4, acquires twice as many candidates as a round has members, crosses each with
    a mutant of the elites, and keeps those that the Fisher screen prefers.

    Proposals are replayable (``base.ReplayableSampler``).

    Args:
        seed, search_space, ranges: as of every sampler of ours (``base.ReplayableSampler``).
        variant: "default", or "paper" for the published loop with one unit system.
        anchors: parameter dictionaries inside the space to propose before anything else.
        n_startup: Sobol points after the anchors; by default 10 in the paper variant, otherwise by the number of
            parameters, two when the study has flagged anchors, none when these are 12 or more and span the space.
        batch: size of a round. Members of a round are proposed from what was observed before it began. By default 1,
            that is from everything observed so far; 5 in the paper variant.
        reference_point: worst value of interest of every objective, in its own unit; by default a tenth of the
            anchors' range below the worst anchor.
        task_objectives: indexes of the task scores among the objectives; by their sum the paper variant ranks its
            elites. All by default. Of no effect in the default variant.
        fisher_screen: which of a round's candidates the paper variant keeps: "low" what the surrogate knows least
            about, "high" most, "off" the first. Of no effect in the default variant.
        budget: how much work one proposal may be: "fast", "quality", or "botorch" for the same loop on BoTorch's
            own model and Monte Carlo acquisition (seconds per proposal instead of tenths).
        unexplained: what the kernel does not explain of values without standard errors: "noise", or "roughness" of the
            landscape, which a new point has too. The paper variant takes it for roughness.
        trend: "quadratic": scores are a quadratic of what the surrogate sees plus a process, in place of a process
            alone; "auto": where the merge adds up to four models by one weight each, from trial 16 on for every other
            trial (docs/benchmarks/search-trend.md). The paper variant and the budget "botorch" have none.
        item_margins: an objective that is a share of right answers is modelled by its items' margins
            (``item_process``), where all trials asked the same items and a merge adds up to four models by one weight
            each. The paper variant and the budget "botorch" do without.
        rule: the merge's arithmetic (``MergeSpace.merge_rule``), by which features are made.
        merge_features: the surrogate sees coefficients as the merge does (``merge_features``); parameters that are no
            ``weight[...]`` or ``density[...]`` are as they are. The paper variant does without.

    Raises:
        UserError: an argument out of its range.
    """

    _crossover: Crossover = staticmethod(crossed)
    """Of the paper variant; an ablation does without."""

    def __init__(
        self,
        *,
        seed: int | None = 0,
        variant: MMMOVariant = "default",
        search_space: Mapping[str, BaseDistribution] | None = None,
        anchors: Sequence[Mapping[str, Any]] = (),
        n_startup: int | None = None,
        batch: int | None = None,
        ranges: Sequence[tuple[float, float] | None] | None = None,
        reference_point: Sequence[float] | None = None,
        task_objectives: Sequence[int] | None = None,
        fisher_screen: FisherScreen = "low",
        budget: Budget = "fast",
        unexplained: Unexplained = "noise",
        trend: Trend = "auto",
        item_margins: bool = True,
        rule: MergeRule = UNKNOWN,
        merge_features: bool = True,
    ) -> None:
        check_arguments(MMMOOptions, locals())
        super().__init__(seed=seed, search_space=search_space, ranges=ranges)
        self._variant = variant
        self._anchors = tuple(dict(anchor) for anchor in anchors)
        self._n_startup = n_startup
        self._batch = batch or (PAPER_BATCH if variant == "paper" else 1)
        self._reference_point = reference_point
        self._task_objectives = task_objectives
        self._fisher_screen = fisher_screen
        self._unexplained: Unexplained = unexplained if variant == "default" else "roughness"
        self._budget = FAST_WITH_NOISE if budget == "fast" and self._unexplained == "noise" else BUDGETS[budget]
        self._trend: Trend = "none" if variant == "paper" or budget == "botorch" else trend
        self._item_margins = item_margins and variant == "default" and budget != "botorch"
        self._rule = rule
        self._merge_features = merge_features and variant == "default"
        self._last_surrogate = LastResult[Surrogate]()
        self._last_paper_round = LastResult[Array]()

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Until a finished trial shows the space, anchors are proposed parameter by parameter."""
        if trial.number < len(self._anchors) and not finished_before(study, trial):
            anchor, encoder = self._anchors[trial.number], Encoder({param_name: param_distribution})
            if encoder.contains(anchor):
                return encoder.decode(encoder.encode(anchor))[param_name]
        return super().sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        earlier = earlier_trials(study, trial.number)
        initial = len(self._anchors) + self._startup(earlier, encoder)
        history = read_history(earlier, trial.number, initial, self._batch)
        if history.position < len(self._anchors):
            anchor = self._anchors[history.position]
            if encoder.contains(anchor):
                return Suggestion("anchor", encoder.decode(encoder.encode(anchor)))
            logger.warning("anchor %d is outside the search space, a Sobol point takes its place", history.position)
        history = limited(history, maximised(study))
        data = self._observations(study, history, encoder)
        later = points_of(later_trials(study, trial.number), encoder)
        data = replace(
            data, taken=np.concatenate([data.taken, later]), kernel=self._kernel(data.features, encoder, trial.number)
        )
        if history.position >= initial and len(data.x) >= 2:
            try:
                data = replace(data, feasibility=self._feasibility(history, encoder))
                proposed = self._model_point(data, history)
            except (np.linalg.LinAlgError, FloatingPointError, ValueError) as error:
                logger.warning(
                    "trial %d: no surrogate could be fitted (%s), a Sobol point instead", trial.number, error
                )
            else:
                if proposed is not None:
                    return Suggestion("model", encoder.decode(proposed.point), proposed.improvement)
        stage = "sobol" if history.position < initial else "fallback"
        index = max(history.position - len(self._anchors), 0)
        return Suggestion(stage, encoder.decode(fresh_point(data, self._seed, index)))

    def _observed_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        common = super()._observed_space(study, trial)
        return {**common, **conditional_space(finished_before(study, trial), common)[0]}

    def _conditions(self, study: Study, trial: FrozenTrial) -> Mapping[str, Condition]:
        if self._declared_space(study) is not None:
            return {}
        return conditional_space(finished_before(study, trial), super()._observed_space(study, trial))[1]

    def _startup(self, earlier: Sequence[FrozenTrial], encoder: Encoder) -> int:
        if self._n_startup is not None:
            return self._n_startup
        if self._variant == "paper":
            return PAPER_STARTUP
        flagged = [trial.params for trial in earlier if is_anchor(trial)]
        anchors = [*flagged, *self._anchors]
        points = [encoder.encode(params) for params in anchors if encoder.contains(params)]
        return startup_size(encoder.parameters, len(anchors), points)

    def _model_point(self, data: Observations, history: History) -> Proposed | None:
        margins = [one for one in data.margins or () if one is not None]
        seen = _digest(data.x, data.y, data.noise_variance, data.reference, *margins)
        surrogate = self._last_surrogate.of((seen, data.kernel), lambda: fit(data))
        if self._variant == "default":
            seed = derive_seed(self._seed, history.round_start, history.slot, "acquisition")
            return propose(data, surrogate, self._budget, seed)
        seed = derive_seed(self._seed, history.round_start, "round")
        points = self._paper_round(data, surrogate, history, seed)
        return Proposed(points[history.slot]) if history.slot < len(points) else None

    def _paper_round(self, data: Observations, surrogate: Surrogate, history: History, seed: int) -> Array:
        """The round's points, the same for every member: what happened since it began is left out."""
        mates = {trial.number for trial in history.earlier if trial.number >= history.round_start}
        before = points_of([t for t in history.pending if t.number not in mates], data.encoder)
        taken = points_of([t for t in history.earlier if t.number not in mates], data.encoder)
        shared = replace(data, pending=before, taken=taken)
        tasks = list(range(data.y.shape[1]) if self._task_objectives is None else self._task_objectives)
        return self._last_paper_round.of(
            (seed, _digest(shared.x, shared.y, shared.noise_variance, shared.reference, before, taken)),
            lambda: propose_paper_round(
                shared, surrogate, self._budget, self._fisher_screen, seed, self._batch, tasks, self._crossover
            ),
        )

    def _observations(self, study: Study, history: History, encoder: Encoder) -> Observations:
        m = len(study.directions)
        check_length("reference_point", self._reference_point, study)
        normaliser = self._normaliser(study, history.anchors)
        if self._reference_point is None:
            reference = np.full(m, REFERENCE)
        else:
            reference = normalise(normaliser, np.array([self._reference_point], dtype=float))[0]
        inside = [trial for trial in history.observed if is_inside(trial, encoder)]
        outside = [trial for trial in history.observed if is_outside_space(trial) and is_feasible(trial)]
        outside.extend(history.front_beyond)
        errors = np.array([standard_errors(trial, m) for trial in inside], dtype=float).reshape(-1, m)
        features = self._features(encoder)
        by_items = self._item_margins and m <= HYPERVOLUME_OBJECTIVES and _adds_few(features, encoder)
        return Observations(
            encoder=encoder,
            features=features,
            x=points_of(inside, encoder),
            y=normalise(normaliser, values_of(inside, m)),
            noise_variance=(errors / np.array(normaliser.scales)) ** 2,
            outside=normalise(normaliser, values_of(outside, m)),
            pending=points_of(history.pending, encoder),
            taken=points_of(history.earlier, encoder),
            reference=reference,
            unexplained=self._unexplained,
            margins=margins_of(inside, m) if by_items else None,
        )

    def _feasibility(self, history: History, encoder: Encoder) -> Feasibility | None:
        inside = [trial for trial in history.observed if is_inside(trial, encoder)]
        names = sorted({name for trial in inside for name in trial.constraints})
        observed = []
        for name in names:
            reporting = [trial for trial in inside if name in trial.constraints]
            errors = np.array([violation_errors(trial)[name] for trial in reporting], dtype=float)
            values = np.array([trial.constraints[name] for trial in reporting], dtype=float)
            observed.append(Violations(self._features(encoder)(points_of(reporting, encoder)), values, errors**2))
        failed = points_of(history.failed, encoder)[-MOST_FAILED:]
        if len(failed):
            points = np.concatenate([points_of(inside, encoder), failed])
            observed.append(evaluability(self._features(encoder)(points), len(failed)))
        if not observed:
            return None
        processes = tuple(fit_violations(each) for each in observed)
        return Feasibility(processes, np.array([is_feasible(trial) for trial in inside], dtype=bool))

    def _kernel(self, features: MergeFeatures, encoder: Encoder, number: int) -> Kernel:
        if self._trend == "auto":
            with_trend = _adds_few(features, encoder) and (number < TREND_ALONE or number % 2 == 0)
        else:
            with_trend = self._trend == "quadratic"
        return MATERN_WITH_TREND if with_trend else MATERN

    def _features(self, encoder: Encoder) -> MergeFeatures:
        # What climbs on a part of the samples is younger than the searches that rest on the digits of differences.
        on_all = self._budget.climbed_samples == self._budget.samples
        return MergeFeatures(encoder, self._rule, self._merge_features, by_differences=on_all)


def _adds_few(features: MergeFeatures, encoder: Encoder) -> bool:
    return features.adds_up and encoder.dimension <= MOST_WEIGHTS_ADDED


def _digest(*arrays: Array) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(repr(array.shape).encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
