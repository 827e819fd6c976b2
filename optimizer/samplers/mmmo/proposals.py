"""From what was told to the next point: the default and the published variant of MM-MO, without Optuna.

Both live in one unit system: values, noise, reference point and acquisition are all normalised (``units``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.common.initial_design import sobol_points
from mergefront.optimizer.samplers.common.surrogate import Surrogate, fit_surrogate
from mergefront.optimizer.samplers.common.units import compress_tail
from mergefront.optimizer.samplers.common.variation import (
    binomial_crossover,
    elites_by_hypervolume,
    elites_by_sum,
    mutants,
)
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement
from mergefront.optimizer.samplers.mmmo.feasibility import Feasibility, FeasibilityWeighted
from mergefront.optimizer.samplers.mmmo.merge_features import MergeFeatures
from mergefront.optimizer.samplers.mmmo.optimize_acqf import Acquisition, SearchBudget, maximise
from mergefront.optimizer.samplers.mmmo.representatives import representatives
from mergefront.optimizer.samplers.mmmo.scalarisation import chebyshev, random_weights
from mergefront.optimizer.samplers.mmmo.screening import FisherScreen, fisher_information, screen

Array = NDArray[np.float64]
Indexes = NDArray[np.int_]

HYPERVOLUME_OBJECTIVES = 4
"""With more objectives the boxes become too many, and random scalarisations take over (ParEGO)."""
ELITES = 8
NEAR_ELITES = 64
MOVE = 0.15
MOVED_COORDINATES, MOVED_SHARE = 4, 0.2
"""Near an elite about so many coordinates are moved, but not less than that share of all."""
SHORTLIST_TOLERANCE = 0.05
"""Candidates whose log acquisition lies this close to the best (5% of the improvement) are equally good."""
DIGITS = 6
"""Features that agree in so many digits are of the same merge."""
MOST_LEARNT_FROM = 150
"""Lengthscales and noise are learnt from so many points at most: that takes a hundred factorisations."""
PAPER_ELITES = 5
PAPER_CANDIDATES_PER_EVALUATION = 2


@dataclass(frozen=True)
class Situation:
    """What a proposal depends on: points in the unit cube, values normalised and maximised."""

    encoder: Encoder
    features: MergeFeatures
    """What of a point the surrogate sees."""
    x: Array
    """Told points, ``n x d``."""
    y: Array
    """Their values, ``n x m``."""
    noise_variance: Array
    """Of ``y``, ``n x m``; NaN where unknown."""
    outside: Array
    """Values (``k x m``) of told trials that are not among ``x``; they belong to the front all the same."""
    pending: Array
    """Points on their way, ``p x d``."""
    taken: Array
    """Points that must not be proposed again, ``a x d``."""
    reference: Array
    """Reference point, ``m``."""
    feasibility: Feasibility | None = None
    """What is known of the constraints; None where there are none."""


def fit(situation: Situation) -> Surrogate:
    """The surrogate of the told values, collapsed ones pulled in."""
    seen, y = situation.features(situation.x), compress_tail(situation.y, situation.reference)
    if len(seen) <= MOST_LEARNT_FROM:
        return fit_surrogate(seen, y, situation.noise_variance)
    known = situation.feasibility
    feasible = np.ones(len(y), dtype=bool) if known is None else known.feasible
    learn_from, _ = representatives(y, feasible, MOST_LEARNT_FROM)
    return fit_surrogate(seen, y, situation.noise_variance, learn_from)


@dataclass(frozen=True)
class Proposed:
    """A point (``d``) and the hypervolume that it is expected to add; None where that is not what was maximised."""

    point: Array
    improvement: float | None = None


def propose(
    situation: Situation,
    surrogate: Surrogate,
    budget: SearchBudget,
    fisher_screen: FisherScreen,
    seed: int,
) -> Proposed | None:
    """The default variant's next point; None when every candidate is taken.

    The acquisition is climbed from the best of Sobol points and of points near the elites. Among candidates that are
    as good as the best, and while others are pending, the Fisher screen picks the least known.
    """
    rng = np.random.default_rng(seed)
    objectives = situation.y.shape[1]
    situation, surrogate = _scalarised(situation, surrogate, rng)
    acquisition = acquisition_of(situation, surrogate, budget, rng)
    near = _near_elites(situation, rng)
    sobol = sobol_points(situation.encoder, seed, 0, budget.raw_points)
    taken = frozenset(_merges(situation.taken, situation))
    starts = _untaken(np.concatenate([near, sobol]), situation, taken)
    if not len(starts):
        return None
    optima, _ = maximise(acquisition, starts, situation.encoder, budget)
    candidates = _untaken(np.concatenate([optima, near]), situation, taken)
    if not len(candidates):
        candidates = starts
    values = acquisition.values(candidates)
    order = np.argsort(-values, kind="stable")
    shortlist = candidates[order[values[order] >= values.max() - SHORTLIST_TOLERANCE]]
    improvement = float(np.exp(values.max())) if _is_improvement(situation, objectives) else None
    if not len(situation.pending):
        return Proposed(np.asarray(shortlist[0]), improvement)
    information = _information(situation, surrogate, shortlist)
    return Proposed(np.asarray(shortlist[screen(information, 1, fisher_screen)[0]]), improvement)


def propose_paper_round(
    situation: Situation,
    surrogate: Surrogate,
    budget: SearchBudget,
    fisher_screen: FisherScreen,
    seed: int,
    batch: int,
    task_objectives: Sequence[int],
) -> Array:
    """A round of the published loop (arXiv 2407.00487, algorithm 1), best first: at most ``batch x d`` points.

    Twice ``batch`` candidates are acquired one after the other, each is crossed with a mutant of the elites, and the
    Fisher screen keeps ``batch`` of them. Differences from the released program: values and reference point
    share one unit system, the improvement is maximised as its logarithm, and points keep full precision.
    """
    rng = np.random.default_rng(seed)
    acquired: list[Array] = []
    for i in range(PAPER_CANDIDATES_PER_EVALUATION * batch):
        pending = np.array([*situation.pending, *acquired]).reshape(-1, situation.encoder.dimension)
        step = Situation(**{**situation.__dict__, "pending": pending})
        step, model = _scalarised(step, surrogate, rng)
        acquisition = acquisition_of(step, model, budget, rng)
        starts = sobol_points(situation.encoder, seed + i, 0, budget.raw_points)
        acquired.append(maximise(acquisition, starts, situation.encoder, budget)[0][0])
    weak = np.stack(acquired)
    tasks = situation.y[:, list(task_objectives)]
    elites = _elites(situation, PAPER_ELITES, lambda rows: elites_by_sum(tasks[rows], PAPER_ELITES))
    strong = situation.encoder.snap(_crossed(elites, weak, rng))
    candidates = _untaken(strong, situation)
    if not len(candidates):
        return candidates
    information = _information(situation, surrogate, candidates)
    return np.asarray(candidates[screen(information, batch, fisher_screen)])


def acquisition_of(
    situation: Situation, surrogate: Surrogate, budget: SearchBudget, rng: np.random.Generator
) -> Acquisition:
    """The acquisition function of a situation, in the surrogate's unit; constraints, where there are any, weigh it."""
    inner = _weighted(situation, _improvement(situation, surrogate, budget, rng))
    return inner if situation.features.identity else _OfFeatures(inner, situation.features)


def _improvement(
    situation: Situation, surrogate: Surrogate, budget: SearchBudget, rng: np.random.Generator
) -> Acquisition:
    """The logarithm of the improvement, over features."""
    pending = situation.features(situation.pending)
    in_front = None if situation.feasibility is None else situation.feasibility.in_front(pending)
    if budget.engine == "botorch":
        from mergefront.optimizer.samplers.mmmo.botorch_engine import BoTorchImprovement

        return BoTorchImprovement(
            situation.features(situation.x),
            compress_tail(situation.y, situation.reference),
            situation.noise_variance,
            pending,
            situation.reference,
            budget.samples,
            int(rng.integers(2**31)),
            None if situation.feasibility is None else situation.feasibility.feasible,
        )
    points, objectives = len(situation.x) + len(situation.pending), situation.y.shape[1]
    half = rng.standard_normal((budget.samples // 2, points, objectives))
    normals = np.concatenate([half, -half])
    if not len(pending) and all(process.roughness for process in surrogate.processes):
        normals = normals[:1]
    return HypervolumeImprovement(surrogate, pending, situation.reference, situation.outside, normals, in_front)


@dataclass(frozen=True)
class _OfFeatures:
    """An acquisition over features as one over points."""

    inner: Acquisition
    features: MergeFeatures

    def values(self, points: Array) -> Array:
        return self.inner.values(self.features(points))

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        value, gradient = self.inner.value_and_gradient(self.features(point[None, :])[0])
        return value, gradient @ self.features.jacobian(point)


def _information(situation: Situation, surrogate: Surrogate, points: Array) -> Array:
    """Fisher information (``n``) of what the surrogate knows about points (``n x d``), pending ones counted."""
    known = surrogate.with_pending(situation.features(situation.pending))
    return fisher_information(known.posterior(situation.features(points))[1])


def _weighted(situation: Situation, acquisition: Acquisition) -> Acquisition:
    known = situation.feasibility
    if known is None:
        return acquisition
    return FeasibilityWeighted(known.processes, acquisition if _front_is_known(situation) else None)


def _front_is_known(situation: Situation) -> bool:
    """Whether anything that was told satisfies the constraints."""
    known = situation.feasibility
    return known is None or bool(known.feasible.any()) or len(situation.outside) > 0


def _is_improvement(situation: Situation, objectives: int) -> bool:
    """Whether the acquisition is the logarithm of an improvement of the study's hypervolume."""
    return objectives <= HYPERVOLUME_OBJECTIVES and _front_is_known(situation)


def _scalarised(situation: Situation, surrogate: Surrogate, rng: np.random.Generator) -> tuple[Situation, Surrogate]:
    """Many objectives as one (``scalarisation``); up to ``HYPERVOLUME_OBJECTIVES`` stay as they are."""
    m = situation.y.shape[1]
    if m <= HYPERVOLUME_OBJECTIVES:
        return situation, surrogate
    weights = random_weights(m, rng)
    y = chebyshev(compress_tail(situation.y, situation.reference), weights)
    outside = chebyshev(compress_tail(situation.outside, situation.reference), weights)
    single = replace(
        situation,
        y=y,
        noise_variance=np.full(y.shape, np.nan),
        outside=outside,
        reference=np.array([min(float(y.min()), -1.0) - 1.0]),
    )
    return single, fit_surrogate(single.features(single.x), single.y, single.noise_variance)


def _near_elites(situation: Situation, rng: np.random.Generator) -> Array:
    """Points (``NEAR_ELITES x d``, or none) that differ from an elite in a few coordinates, and by little."""
    elites = _elites(
        situation, ELITES, lambda rows: elites_by_hypervolume(situation.y[rows], situation.reference, ELITES)
    )
    d = situation.encoder.dimension
    if not len(elites):
        return np.zeros((0, d))
    chosen = elites[rng.integers(len(elites), size=NEAR_ELITES)]
    moved = rng.random(chosen.shape) < min(1.0, max(MOVED_COORDINATES / d, MOVED_SHARE))
    moved[np.arange(NEAR_ELITES), rng.integers(d, size=NEAR_ELITES)] = True
    return situation.encoder.snap(np.clip(chosen + moved * rng.normal(0.0, MOVE, chosen.shape), 0.0, 1.0))


def _elites(situation: Situation, count: int, ranked: Callable[[Indexes], Indexes]) -> Array:
    """The best told points (at most ``count x d``); those that violate a constraint come last, the likeliest first.

    ``ranked`` puts the told points with the given indexes in order, as indexes into them.
    """
    known = situation.feasibility
    if known is None:
        return np.asarray(situation.x[ranked(np.arange(len(situation.x)))])
    good, bad = np.flatnonzero(known.feasible), np.flatnonzero(~known.feasible)
    order = good[ranked(good)] if len(good) else good
    likeliest = bad[np.argsort(-known.log_probability(situation.features(situation.x[bad])), kind="stable")]
    return np.asarray(situation.x[np.concatenate([order, likeliest])[:count]])


def _crossed(elites: Array, targets: Array, rng: np.random.Generator) -> Array:
    if len(elites) < 3:
        return targets
    return binomial_crossover(mutants(elites, len(targets), rng), targets, rng)


def _untaken(points: Array, situation: Situation, taken: frozenset[bytes] | None = None) -> Array:
    """The distinct merges among ``points`` (``n x d``), in order, that are none of those ``taken`` (``_merges``)."""
    seen = set(_merges(situation.taken, situation) if taken is None else taken)
    keep = []
    for i, key in enumerate(_merges(points, situation)):
        if key not in seen:
            seen.add(key)
            keep.append(i)
    return points[keep]


def _merges(points: Array, situation: Situation) -> list[bytes]:
    """What tells the merges at ``points`` (``n x d``) apart."""
    return [row.tobytes() for row in _rounded(situation.features(points))]


def _rounded(points: Array) -> Array:
    return np.round(points, DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0, whose bytes differ


def fresh_point(situation: Situation, seed: int, first: int) -> Array:
    """A Sobol point that is not taken, starting at index ``first``; a taken one when the whole space is."""
    points = sobol_points(situation.encoder, seed, first, 64)
    untaken = _untaken(points, situation)
    return np.asarray(untaken[0] if len(untaken) else points[0])
