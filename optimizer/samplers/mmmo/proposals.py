"""From what was observed to the next point: the default and the published variant of MM-MO, without Optuna.

Both live in one unit system: values, noise, reference point and acquisition are all normalised (``units``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mergefront.optimizer.arrays import Array, Integers
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.common.initial_design import sobol_points
from mergefront.optimizer.samplers.common.representatives import representatives
from mergefront.optimizer.samplers.common.units import compress_tail
from mergefront.optimizer.samplers.common.variation import (
    binomial_crossover,
    elites_by_hypervolume,
    elites_by_sum,
    mutants,
)
from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process, fit_surrogate
from mergefront.optimizer.samplers.gaussian_process.item_process import fit_by_items
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, Kernel
from mergefront.optimizer.samplers.gaussian_process.posterior import Surrogate
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement
from mergefront.optimizer.samplers.mmmo.feasibility import Feasibility, FeasibilityWeighted
from mergefront.optimizer.samplers.mmmo.merge_features import MergeFeatures
from mergefront.optimizer.samplers.mmmo.optimize_acqf import Acquisition, SearchBudget, maximise
from mergefront.optimizer.samplers.mmmo.scalarisation import chebyshev, random_weights
from mergefront.optimizer.samplers.mmmo.screening import fisher_information, screen
from mergefront.optimizer.samplers.options import FisherScreen, Unexplained

HYPERVOLUME_OBJECTIVES = 4
"""With more objectives the boxes become too many, and random scalarisations take over (ParEGO). Chosen by hand."""
ELITES, NEAR_ELITES = 8, 64
"""So many starting points of the optimiser are small changes of so many elites. Such changes measured better than
offspring of differential evolution ("Starting points of the optimiser", docs/benchmarks/search-pieces.md); the two
numbers, like those of the changes below, were chosen by hand."""
MOVE = 0.15
"""Standard deviation of a moved coordinate, as a share of its range."""
MOVED_COORDINATES, MOVED_SHARE = 4, 0.2
"""Near an elite about so many coordinates are moved, but not less than that share of all."""
DIGITS = 6
"""Features that agree in so many digits are of the same merge; points lie on a grid of 1e-4 (``unit_cube.GRID``)."""
MOST_LEARNT_FROM = 150
"""Lengthscales and noise are learnt from so many points at most, since that takes a hundred factorisations; what it
costs is measured in docs/benchmarks/operations.md."""
Crossover = Callable[[Array, Array, np.random.Generator], Array]
"""What becomes of targets (``n x d``) beside elites."""
PAPER_ELITES, PAPER_CANDIDATES_PER_EVALUATION = 5, 2
"""Of the released program of arXiv 2407.00487."""


@dataclass(frozen=True)
class Observations:
    """What a proposal depends on: points in the unit cube, values normalised and maximised."""

    encoder: Encoder
    features: MergeFeatures
    """What of a point the surrogate sees."""
    x: Array
    """Observed points, ``n x d``."""
    y: Array
    """Their values, ``n x m``."""
    noise_variance: Array
    """Of ``y``, ``n x m``; NaN where unknown."""
    outside: Array
    """Values (``k x m``) of observed trials that are not among ``x``; they belong to the front all the same."""
    pending: Array
    """Points on their way, ``p x d``."""
    taken: Array
    """Points that must not be proposed again, ``a x d``."""
    reference: Array
    """Reference point, ``m``."""
    unexplained: Unexplained = "noise"
    """What the kernel does not explain of values whose noise is unknown."""
    kernel: Kernel = MATERN
    """Of the processes of values."""
    feasibility: Feasibility | None = None
    """What is known of the constraints; None where there are none."""
    margins: tuple[Array | None, ...] | None = None
    """Of each objective its items' margins (``n x k``), None where they are not known; None where none is asked."""


def fit(data: Observations) -> Surrogate:
    """The surrogate of the observed values, collapsed ones pulled in."""
    seen, y = data.features(data.x), compress_tail(data.y, data.reference)
    learn_from: Integers | slice = slice(None)
    if len(seen) > MOST_LEARNT_FROM:
        feasibility = data.feasibility
        feasible = np.ones(len(y), dtype=bool) if feasibility is None else feasibility.feasible
        learn_from, _ = representatives(y, feasible, MOST_LEARNT_FROM)
    if data.margins is None:
        return fit_surrogate(seen, y, data.noise_variance, learn_from, data.unexplained, data.kernel)
    processes = []
    for j, margins in enumerate(data.margins):
        by_items = None
        if margins is not None:
            by_items = fit_by_items(seen, data.y[:, j], margins, float(data.reference[j]), data.kernel, learn_from)
        processes.append(
            by_items
            or fit_gaussian_process(seen, y[:, j], data.noise_variance[:, j], data.kernel, learn_from, data.unexplained)
        )
    return Surrogate(tuple(processes))


@dataclass(frozen=True)
class Proposed:
    """A point (``d``) and the hypervolume that it is expected to add; None where that is not what was maximised."""

    point: Array
    improvement: float | None = None


def propose(
    data: Observations,
    surrogate: Surrogate,
    budget: SearchBudget,
    seed: int,
) -> Proposed | None:
    """The default variant's next point; None when every candidate is taken.

    The acquisition is climbed from the best of Sobol points and of points near the elites.
    """
    rng = np.random.default_rng(seed)
    objectives = data.y.shape[1]
    data, surrogate = _scalarised(data, surrogate, rng)
    expected = _improvement(data, surrogate, budget, rng)
    acquisition, rough = _over_points(data, expected), None
    if isinstance(expected, HypervolumeImprovement) and expected.samples > budget.climbed_samples:
        rough = _over_points(data, expected.thinned(budget.climbed_samples))
    near = _near_elites(data, rng)
    sobol = sobol_points(data.encoder, seed, 0, budget.raw_points)
    taken = frozenset(_merges(data.taken, data))
    starts = _untaken(np.concatenate([near, sobol]), data, taken)
    if not len(starts):
        return None
    optima, _ = maximise(acquisition, starts, data.encoder, budget, rough)
    candidates = _untaken(np.concatenate([optima, near]), data, taken)
    if not len(candidates):
        candidates = starts
    values = acquisition.values(candidates)
    measured = objectives <= HYPERVOLUME_OBJECTIVES and _front_is_known(data)
    improvement = float(np.exp(values.max())) if measured else None
    return Proposed(np.asarray(candidates[np.argmax(values)]), improvement)


def propose_paper_round(
    data: Observations,
    surrogate: Surrogate,
    budget: SearchBudget,
    fisher_screen: FisherScreen,
    seed: int,
    batch: int,
    task_objectives: Sequence[int],
    cross: Crossover,
) -> Array:
    """A round of the published loop (arXiv 2407.00487, algorithm 1), best first: at most ``batch x d`` points.

    Twice ``batch`` candidates are acquired one after the other, each is crossed with a mutant of the elites, and the
    Fisher screen keeps ``batch`` of them. Differences from the released program: values and reference point
    share one unit system, the improvement is maximised as its logarithm, and points keep full precision.
    """
    rng = np.random.default_rng(seed)
    acquired: list[Array] = []
    for i in range(PAPER_CANDIDATES_PER_EVALUATION * batch):
        pending = np.array([*data.pending, *acquired]).reshape(-1, data.encoder.dimension)
        step = replace(data, pending=pending)
        step, model = _scalarised(step, surrogate, rng)
        acquisition = acquisition_of(step, model, budget, rng)
        starts = sobol_points(data.encoder, seed + i, 0, budget.raw_points)
        acquired.append(maximise(acquisition, starts, data.encoder, budget)[0][0])
    weak = np.stack(acquired)
    tasks = data.y[:, list(task_objectives)]
    elites = _elites(data, PAPER_ELITES, lambda rows: elites_by_sum(tasks[rows], PAPER_ELITES))
    strong = data.encoder.snap(cross(elites, weak, rng))
    candidates = _untaken(strong, data)
    if not len(candidates):
        return candidates
    information = _information(data, surrogate, candidates)
    return np.asarray(candidates[screen(information, batch, fisher_screen)])


def acquisition_of(
    data: Observations, surrogate: Surrogate, budget: SearchBudget, rng: np.random.Generator
) -> Acquisition:
    """The acquisition function of a proposal, in the surrogate's unit; constraints, where there are any, weigh it."""
    return _over_points(data, _improvement(data, surrogate, budget, rng))


def _over_points(data: Observations, improvement: Acquisition) -> Acquisition:
    """The logarithm of an improvement over features as what is maximised over points, weighed by the constraints."""
    inner = _weighted(data, improvement)
    return inner if data.features.identity else _OfFeatures(inner, data.features)


def _improvement(
    data: Observations, surrogate: Surrogate, budget: SearchBudget, rng: np.random.Generator
) -> Acquisition:
    """The logarithm of the improvement, over features."""
    pending = data.features(data.pending)
    in_front = None if data.feasibility is None else data.feasibility.in_front(pending)
    if budget.engine == "botorch":
        from mergefront.optimizer.samplers.mmmo.botorch_engine import BoTorchImprovement

        return BoTorchImprovement(
            data.features(data.x),
            compress_tail(data.y, data.reference),
            data.noise_variance,
            pending,
            data.reference,
            budget.samples,
            int(rng.integers(2**31)),
            None if data.feasibility is None else data.feasibility.feasible,
        )
    points, objectives = len(data.x) + len(data.pending), data.y.shape[1]
    half = rng.standard_normal((budget.samples // 2, points, objectives))
    base_samples = np.concatenate([half, -half])
    if not len(pending) and all(process.nugget for process in surrogate.processes):
        base_samples = base_samples[:1]
    return HypervolumeImprovement(surrogate, pending, data.reference, data.outside, base_samples, in_front)


@dataclass(frozen=True)
class _OfFeatures:
    """An acquisition over features as one over points."""

    inner: Acquisition
    features: MergeFeatures

    def values(self, points: Array) -> Array:
        return self.inner.values(self.features(points))

    def value_and_gradient(self, point: Array) -> tuple[float, Array]:
        seen, in_coordinates = self.features.with_gradient(point)
        value, in_features = self.inner.value_and_gradient(seen)
        return value, in_coordinates(in_features)


def _information(data: Observations, surrogate: Surrogate, points: Array) -> Array:
    """Fisher information (``n``) of what the surrogate knows about points (``n x d``), pending ones counted."""
    known = surrogate.with_pending(data.features(data.pending))
    return fisher_information(known.posterior(data.features(points))[1])


def _weighted(data: Observations, acquisition: Acquisition) -> Acquisition:
    feasibility = data.feasibility
    if feasibility is None:
        return acquisition
    return FeasibilityWeighted(feasibility.processes, acquisition if _front_is_known(data) else None)


def _front_is_known(data: Observations) -> bool:
    """Whether anything that was observed satisfies the constraints."""
    feasibility = data.feasibility
    return feasibility is None or bool(feasibility.feasible.any()) or len(data.outside) > 0


def _scalarised(data: Observations, surrogate: Surrogate, rng: np.random.Generator) -> tuple[Observations, Surrogate]:
    """Many objectives as one (``scalarisation``); up to ``HYPERVOLUME_OBJECTIVES`` stay as they are."""
    m = data.y.shape[1]
    if m <= HYPERVOLUME_OBJECTIVES:
        return data, surrogate
    weights = random_weights(m, rng)
    y = chebyshev(compress_tail(data.y, data.reference), weights)
    outside = chebyshev(compress_tail(data.outside, data.reference), weights)
    single = replace(
        data,
        y=y,
        noise_variance=np.full(y.shape, np.nan),
        outside=outside,
        reference=np.array([min(float(y.min()), -1.0) - 1.0]),
    )
    seen = single.features(single.x)
    return single, fit_surrogate(
        seen, single.y, single.noise_variance, unexplained=data.unexplained, kernel=data.kernel
    )


def _near_elites(data: Observations, rng: np.random.Generator) -> Array:
    """Points (``NEAR_ELITES x d``) that differ from an elite in a few coordinates, and by little."""
    elites = _elites(data, ELITES, lambda rows: elites_by_hypervolume(data.y[rows], data.reference, ELITES))
    d = data.encoder.dimension
    chosen = elites[rng.integers(len(elites), size=NEAR_ELITES)]
    moved = rng.random(chosen.shape) < min(1.0, max(MOVED_COORDINATES / d, MOVED_SHARE))
    moved[np.arange(NEAR_ELITES), rng.integers(d, size=NEAR_ELITES)] = True
    return data.encoder.snap(np.clip(chosen + moved * rng.normal(0.0, MOVE, chosen.shape), 0.0, 1.0))


def _elites(data: Observations, count: int, ranked: Callable[[Integers], Integers]) -> Array:
    """The best observed points (at most ``count x d``); those that violate a constraint come last, the likeliest first.

    ``ranked`` puts the observed points with the given indexes in order, as indexes into them.
    """
    feasibility = data.feasibility
    if feasibility is None:
        return np.asarray(data.x[ranked(np.arange(len(data.x)))])
    good, bad = np.flatnonzero(feasibility.feasible), np.flatnonzero(~feasibility.feasible)
    order = good[ranked(good)] if len(good) else good
    likeliest = bad[np.argsort(-feasibility.log_probability(data.features(data.x[bad])), kind="stable")]
    return np.asarray(data.x[np.concatenate([order, likeliest])[:count]])


def crossed(elites: Array, targets: Array, rng: np.random.Generator) -> Array:
    """Each target (``n x d``) crossed with a mutant of the elites, as in differential evolution."""
    if len(elites) < 3:
        return targets
    return binomial_crossover(mutants(elites, len(targets), rng), targets, rng)


def _untaken(points: Array, data: Observations, taken: frozenset[bytes] | None = None) -> Array:
    """The distinct merges among ``points`` (``n x d``), in order, that are none of those ``taken`` (``_merges``)."""
    seen = set(_merges(data.taken, data) if taken is None else taken)
    keep = []
    for i, key in enumerate(_merges(points, data)):
        if key not in seen:
            seen.add(key)
            keep.append(i)
    return points[keep]


def _merges(points: Array, data: Observations) -> list[bytes]:
    """What tells the merges at ``points`` (``n x d``) apart."""
    # + 0.0 turns -0.0 into 0.0, whose bytes differ.
    return [row.tobytes() for row in np.round(data.features(points), DIGITS) + 0.0]


def fresh_point(data: Observations, seed: int, first: int) -> Array:
    """A Sobol point that is not taken, starting at index ``first``; a taken one when the whole space is."""
    points = sobol_points(data.encoder, seed, first, 64)
    untaken = _untaken(points, data)
    return np.asarray(untaken[0] if len(untaken) else points[0])
