"""MAP as a plain Optuna sampler: quadratic surrogates, and a whole front from them at no further cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.base import ReplayableSampler, Suggestion
from mergefront.optimizer.samplers.common.box_decomposition import nondominated_boxes
from mergefront.optimizer.samplers.common.history import (
    earlier_trials,
    is_inside,
    is_observed,
    later_trials,
    likely_to_fail,
    points_of,
)
from mergefront.optimizer.samplers.common.initial_design import sobol_points
from mergefront.optimizer.samplers.common.lora_coefficients import Coefficients, read_coefficients
from mergefront.optimizer.samplers.common.units import compress_tail, normalise, values_of
from mergefront.optimizer.samplers.common.variation import binomial_crossover, mutants
from mergefront.optimizer.samplers.map.quadratic import QuadraticModel, coefficient_count, fit_quadratic
from mergefront.optimizer.samplers.map.tournament import next_point
from mergefront.optimizer.samplers.options import MAPOptions, check_arguments
from mergefront.optimizer.scores.objectives import REFERENCE
from mergefront.optimizer.scores.pareto import nondominated, nondominated_ranks
from mergefront.optimizer.search.attributes import is_anchor
from mergefront.optimizer.seeding import derive_seed

MOST_STARTUP = 60
"""The surrogate is regularised, so large spaces need fewer trials than it has coefficients. Chosen by hand."""
GENERATIONS, POPULATION, RAW = 40, 100, 512
"""Of the search for the front of the models, on RAW random points first; it costs no evaluations. By hand."""


class MAPSampler(ReplayableSampler):
    """Amortised Pareto fronts (MAP, arXiv 2406.07529): a quadratic with a sigmoid link per objective.

    >>> study = optuna.create_study(directions=["maximize"] * 2, sampler=MAPSampler(seed=0))

    1. Until there are ``n_startup`` trials, the next point of a scrambled Sobol sequence; with ``nested``, the next
       point of the tournament (``tournament``).
    2. Objectives are normalised by the anchors and maximised; one quadratic with a sigmoid link is fitted to each
       (``quadratic``).
    3. An evolutionary search finds the front of the models, which costs no evaluations (``amortised_front``).
    4. Of its members that were not proposed before, the one that adds the most hypervolume to what is observed and
       expected is proposed; every ``refine``-th time, the one of which the models know least (Bayesian MAP).

    Any number of objectives; proposals are replayable (``base.ReplayableSampler``).

    Args:
        seed, search_space, ranges: as of every sampler of ours (``base.ReplayableSampler``).
        n_startup: trials, anchors inside the space included, before the first model. By default the number of
            coefficients of a quadratic, (d + 1)(d + 2) / 2, at most 60.
        nested: instead of the Sobol design, a tournament of pairs over the weights (``weight[NAME]``): for many
            experts, where a quadratic in all weights would need too many trials. Numeric spaces only.
        link: whether objectives saturate (the sigmoid); without it they are plain quadratics.
        refine: every how many proposals one goes to where the models are least certain; 0 never does.

    Raises:
        UserError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        seed: int | None = 0,
        search_space: Mapping[str, BaseDistribution] | None = None,
        n_startup: int | None = None,
        nested: bool = False,
        link: bool = True,
        refine: int = 4,
        ranges: Sequence[tuple[float, float] | None] | None = None,
    ) -> None:
        check_arguments(MAPOptions, locals())
        super().__init__(seed=seed, search_space=search_space, ranges=ranges)
        self._n_startup = n_startup
        self._nested = nested
        self._link = link
        self._refine = refine

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        stage, point = self._staged_point(study, trial.number, encoder)
        return Suggestion(stage, encoder.decode(point))

    def _staged_point(self, study: Study, number: int, encoder: Encoder) -> tuple[str, Array]:
        earlier = earlier_trials(study, number)
        inside = [trial for trial in earlier if is_inside(trial, encoder)]
        observed = [trial for trial in inside if is_observed(trial)]
        if self._nested and not any(isinstance(d, CategoricalDistribution) for d in encoder.space.values()):
            point = self._match_point(study, read_coefficients(encoder.space), inside, earlier)
            if point is not None:
                return "match", point
        startup = self._n_startup
        if startup is None:
            startup = min(coefficient_count(encoder.dimension), MOST_STARTUP)
        if len(observed) < 2 or (len(inside) < startup and not self._nested):
            return "sobol", sobol_points(encoder, self._seed, number, 1)[0]
        values, reference = self._values(study, observed, earlier)
        x = _points(observed, encoder)
        models = [fit_quadratic(x, values[:, j], self._link) for j in range(values.shape[1])]
        rng = np.random.default_rng(derive_seed(self._seed, number, "front"))
        failed = _points([trial for trial in inside if trial.state.is_finished() and not is_observed(trial)], encoder)
        front = amortised_front(
            models, x[nondominated(values)], encoder, rng, lambda points: likely_to_fail(points, x, failed)
        )
        taken = {row.tobytes() for row in _points([*inside, *later_trials(study, number)], encoder)}
        fresh = np.array([row.tobytes() not in taken for row in front], dtype=bool)
        if not fresh.any():
            return "fallback", sobol_points(encoder, self._seed, number, 1)[0]
        front = front[fresh]
        predicted = [model.predict(front) for model in models]
        if self._refine and (number % self._refine) == self._refine - 1:
            # Uncertainties add up in the one unit that all objectives share.
            return "refine", front[int(np.argmax(sum(deviation for _, deviation in predicted)))]
        pending = _points([trial for trial in inside if not trial.state.is_finished()], encoder)
        expected = np.stack([model.predict(pending)[0] for model in models], axis=1)
        means = np.stack([mean for mean, _ in predicted], axis=1)
        return "front", front[_most_promising(means, np.concatenate([values, expected]), reference)]

    def _match_point(
        self,
        study: Study,
        coefficients: Coefficients,
        inside: Sequence[FrozenTrial],
        earlier: Sequence[FrozenTrial],
    ) -> Array | None:
        """The next point of the tournament; None when it is over."""
        points = _points(inside, coefficients.encoder)
        observed = [i for i, trial in enumerate(inside) if is_observed(trial)]
        values: Mapping[bytes, Array] = {}
        if observed:
            rows, _ = self._values(study, [inside[i] for i in observed], earlier)
            values = {points[i].tobytes(): row for i, row in zip(observed, rows, strict=True)}
        return next_point(coefficients, values, {point.tobytes() for point in points})

    def _values(
        self, study: Study, observed: Sequence[FrozenTrial], earlier: Sequence[FrozenTrial]
    ) -> tuple[Array, Array]:
        """Values (``n x m``) and reference point (``m``) in the common unit, collapsed merges squeezed."""
        m = len(study.directions)
        anchors = [trial for trial in earlier if is_anchor(trial) and is_observed(trial)] or observed
        reference = np.full(m, REFERENCE)
        normalised = normalise(self._normaliser(study, anchors), values_of(observed, m))
        return compress_tail(normalised, reference), reference


def _points(trials: Sequence[FrozenTrial], encoder: Encoder) -> Array:
    return encoder.snap(points_of(trials, encoder))


def amortised_front(
    models: Sequence[QuadraticModel],
    observed: Array,
    encoder: Encoder,
    rng: np.random.Generator,
    left_out: Callable[[Array], Mask] = lambda points: np.zeros(len(points), dtype=bool),
) -> Array:
    """Points (``f x d``) that none dominates under the models, evolved from ``observed`` (``k x d``) and chance.

    ``left_out`` says which of some points (``n x d``) are not wanted whatever the models say.
    """

    def predict(points: Array) -> Array:
        return np.stack([model.predict(points)[0] for model in models], axis=1)

    points = np.concatenate([observed, encoder.from_uniform(rng.random((RAW, encoder.parameters)))])
    points = points[~left_out(points)]
    points, values = _select(points, predict(points))
    for _ in range(GENERATIONS):
        if len(points) < 3:
            points = np.concatenate([points, encoder.from_uniform(rng.random((3, encoder.parameters)))])
        children = binomial_crossover(
            mutants(points, POPULATION, rng), points[rng.integers(len(points), size=POPULATION)], rng
        )
        # Differential steps die out with the population's diversity; small normal ones do not.
        step = rng.choice([0.0, 0.01, 0.1], size=(POPULATION, 1))
        children = encoder.snap(np.clip(children + step * rng.standard_normal(children.shape), 0.0, 1.0))
        merged = np.unique(np.concatenate([points, children[~left_out(children)]]), axis=0)
        points, values = _select(merged, predict(merged))
    return points[nondominated(values)]


def _select(points: Array, values: Array) -> tuple[Array, Array]:
    """The best ``POPULATION`` points by non-dominated rank, the less crowded ones of the last rank."""
    ranks = nondominated_ranks(values)
    order = np.argsort(ranks, kind="stable")
    if len(order) > POPULATION:
        last = ranks[order[POPULATION - 1]]
        kept, layer = order[ranks[order] < last], order[ranks[order] == last]
        room = POPULATION - len(kept)
        if len(layer) > room:
            layer = layer[np.argsort(-_crowding(values[layer]), kind="stable")[:room]]
        order = np.concatenate([kept, layer])
    return points[order], values[order]


def _crowding(values: Array) -> Array:
    """NSGA-II's crowding distance of the points of one rank (``n x m``): ``n``, infinite at the ends."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        gaps = np.full(len(values), np.inf)
        gaps[1:-1] = (column[order][2:] - column[order][:-2]) / (np.ptp(column) or 1.0)
        distance[order] += gaps
    return distance


def _most_promising(candidates: Array, evaluated: Array, reference: Array) -> int:
    """Index of the candidate (``c x m``) that adds the most hypervolume to what is evaluated (``n x m``)."""
    if len(reference) > 4:
        # Exact cells grow too many; the largest gain in the sum of objectives is a stand-in.
        return int(np.argmax(candidates.sum(axis=1)))
    lower, upper, _ = nondominated_boxes(evaluated[None], reference)
    sides = np.minimum(candidates[:, None, :], upper[None]) - lower[None]
    gains = np.maximum(sides, 0.0).prod(axis=2).sum(axis=1)
    if gains.max() > 0.0:
        return int(np.argmax(gains))
    return int(np.argmax(candidates.sum(axis=1)))
