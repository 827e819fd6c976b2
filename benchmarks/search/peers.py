"""Who is compared: our samplers, Optuna's, BoTorch's, pymoo's, and the loops of published programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from benchmarks.search.language_models.problems import LANGUAGE_MODELS
from benchmarks.search.problem import Problem
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.common.initial_design import sobol_points
from mergefront.optimizer.samplers.common.variation import binomial_crossover, mutants
from mergefront.optimizer.samplers.gaussian_process.fit import fit_surrogate
from mergefront.optimizer.samplers.registry import make_sampler
from mergefront.optimizer.search.attributes import is_anchor, is_outside_space
from mergefront.optimizer.seeding import derive_seed

Array = NDArray[np.float64]
Propose = Callable[[Array, Array, int], Array]
"""From points of the unit cube (``n x d``), their values (``n x m``, maximised) and a seed, the next point (``d``)."""


@dataclass(frozen=True)
class Peer:
    """A sampler by the name in the tables.

    ``evaluations`` is as far as its cost lets it be run; ``problems``: substrings of the problems that it is run on,
    all without, but constrained ones only with ``constraints``, and none of more than ``most_objectives``; the rest are
    options of ``runs.run``.
    """

    make: Callable[[Problem, int], BaseSampler]
    evaluations: int = 120
    anchors: bool = True
    workers: int = 1
    constraints: bool = True
    problems: tuple[str, ...] = ()
    most_objectives: float = float("inf")

    def takes(self, problem: Problem) -> bool:
        """Whether it is run on that problem."""
        if len(problem.objectives) > self.most_objectives:
            return False
        if self.problems:
            return any(part in problem.name for part in self.problems)
        return self.constraints or not problem.least


class _Relative(BaseSampler):
    """A sampler of points in the unit cube: subclasses give ``point``, the rest is Optuna's protocol."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.space = problem.space.distributions()
        self.encoder = Encoder(self.space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        told = list(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        return self.encoder.decode(self.encoder.snap(self.point(trial.number, told)[None, :])[0])

    def sample_independent(self, *_: Any) -> Any:
        raise AssertionError("every parameter is sampled together")

    def point(self, number: int, told: list[FrozenTrial]) -> Array:
        raise NotImplementedError

    def data(self, told: list[FrozenTrial]) -> tuple[Array, Array, Array]:
        """Points of the space (``n x d``), their normalised values and those outside."""
        inside = [t for t in told if not is_outside_space(t)]
        outside = [t for t in told if is_outside_space(t)]
        x = np.array([self.encoder.encode(t.params) for t in inside]).reshape(-1, self.encoder.dimension)
        values = [[self.problem.normaliser.normalise(t.values) for t in some] for some in (inside, outside)]
        m = len(self.problem.objectives)
        return x, np.array(values[0]).reshape(-1, m), np.array(values[1]).reshape(-1, m)


class AfterStartup(_Relative):
    """After the anchors and as many Sobol points as MM-MO takes, what a function of a module here gives (``by`` is
    "module.function"); it is imported for the first proposal, as not every environment has what it needs."""

    def __init__(self, by: str, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self.by = by

    def point(self, number: int, told: list[FrozenTrial]) -> Array:
        anchors = sum(is_anchor(trial) for trial in told)
        startup = 2 if anchors >= 3 else min(self.encoder.parameters + 1, 12)
        if number - anchors < startup:
            return sobol_points(self.encoder, derive_seed(self.seed, "startup"), number - anchors, 1)[0]
        x, y, _ = self.data(told)
        module, function = self.by.split(".")
        propose: Propose = getattr(import_module(f"benchmarks.search.{module}"), function)
        return propose(x, y, derive_seed(self.seed, number) % 2**31)


class AxClientPeer(_Relative):
    """Ax's Client with its defaults, or another ``method`` of its own (``ax_peer``)."""

    def __init__(self, problem: Problem, seed: int, method: str = "fast") -> None:
        super().__init__(problem, seed)
        from benchmarks.search.ax_peer import AxClient

        self.client = AxClient(self.encoder.dimension, len(problem.objectives), seed, method)
        self.known = 0

    def point(self, number: int, told: list[FrozenTrial]) -> Array:
        x, y, _ = self.data(told)
        for point, values in zip(x[self.known :], y[self.known :], strict=True):
            self.client.tell(point, values.tolist())
        self.known = len(x)
        return self.client.ask()


class ReleasedMMMO(_Relative):
    """What the released MM-MO program does: its reference point lies in raw units under standardised scores, so the
    improvement is zero everywhere and its candidates are random; then differential evolution and variance screening."""

    def point(self, number: int, told: list[FrozenTrial]) -> Array:
        anchors = sum(is_anchor(trial) for trial in told)
        if number - anchors < 10:
            return sobol_points(self.encoder, derive_seed(self.seed, "startup"), number - anchors, 1)[0]
        slot = (number - anchors - 10) % 5
        known = [trial for trial in told if trial.number < number - slot]
        rng = np.random.default_rng(derive_seed(self.seed, "round", number - slot))
        x, y, _ = self.data(known)
        elites = x[np.argsort(-y.sum(1), kind="stable")[:5]]
        candidates = rng.random((10, x.shape[1]))
        candidates = binomial_crossover(mutants(elites, 10, rng), candidates, rng)
        variance = fit_surrogate(x, y, np.full(y.shape, np.nan)).posterior(candidates)[1]
        return np.asarray(candidates[np.argsort((1 / variance).sum(1), kind="stable")[slot]])


class PymooNSGA2(_Relative):
    """pymoo's NSGA-II with its default variation, a population of 20 and the anchors in the first one."""

    POPULATION = 20

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self.waiting: list[Any] = []
        self.asked: list[Any] = []
        self.algorithm: Any = None

    def point(self, number: int, told: list[FrozenTrial]) -> Array:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.problems.static import StaticProblem

        x, y, _ = self.data(told)
        if self.algorithm is None:
            d, m = self.encoder.dimension, y.shape[1] if len(y) else len(self.problem.objectives)
            random = sobol_points(self.encoder, derive_seed(self.seed, "startup"), 0, self.POPULATION)
            first = np.concatenate([x, random])[: self.POPULATION]
            self.known = len(x)
            self.target = PymooProblem(n_var=d, n_obj=m, xl=np.zeros(d), xu=np.ones(d))
            self.algorithm = NSGA2(pop_size=self.POPULATION, sampling=first)
            self.algorithm.setup(self.target, termination=("n_gen", 10**6), seed=self.seed + 1, verbose=False)
            self._ask()
            self.done = self.known
        results = y
        if self.done == len(self.population):
            values = results[-len(self.population) :] if self.generation else results[: len(self.population)]
            self.algorithm.evaluator.eval(StaticProblem(self.target, F=-values), self.population)
            self.algorithm.tell(infills=self.population)
            self.generation += 1
            self._ask()
            self.done = 0
        point = self.population[self.done].X
        self.done += 1
        return np.asarray(point)

    generation = 0

    def _ask(self) -> None:
        self.population = self.algorithm.ask()


def _ours(**options: Any) -> Callable[[Problem, int], BaseSampler]:
    def make(problem: Problem, seed: int) -> BaseSampler:
        from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler

        return MMMOSampler(
            seed=seed,
            search_space=problem.space.distributions(),
            ranges=problem.ranges,
            rule=problem.space.merge_rule,
            **options,
        )

    return make


def _named(name: str, **options: Any) -> Callable[[Problem, int], BaseSampler]:
    def make(problem: Problem, seed: int) -> BaseSampler:
        return make_sampler(
            name,
            seed=seed,
            search_space=problem.space.distributions(),
            objectives=problem.objectives,
            options=options,
        )

    return make


class WeightedSumCmaEs(_Relative):
    """CMA-ES on the mean of the normalised objectives, as mergekit-evolve searches, from the uniform average."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        from cmaes import CMA

        self.engine = CMA(
            mean=np.full(self.encoder.dimension, 0.5),
            sigma=0.3,
            bounds=np.tile([0.0, 1.0], (self.encoder.dimension, 1)),
            seed=derive_seed(seed, "cma") % 2**31,
        )
        self.generation: list[tuple[Array, float]] = []
        self.last: Array | None = None

    def point(self, number: int, told: list[FrozenTrial]) -> Array:
        if self.last is not None:
            value = float(np.mean(self.problem.normaliser.normalise(told[-1].values)))
            self.generation.append((self.last, -value))
            if len(self.generation) == self.engine.population_size:
                self.engine.tell(self.generation)
                self.generation = []
        self.last = self.engine.ask()
        return self.last


CONSTRAINED = ("at least",)
WRITTEN = ("SmolLM2 written, weights",)
"""Where the slowest peers run."""
ALONE: Mapping[str, Any] = {"item_margins": False}
"""Scores are modelled without their items, as they were when these ways of MM-MO were compared."""

PEERS: Mapping[str, Peer] = {
    "random": Peer(_named("random"), constraints=False),
    "Sobol": Peer(_named("sobol"), constraints=False),
    "TPE": Peer(_named("tpe")),
    "TPE multivariate": Peer(_named("tpe-multivariate")),
    "NSGA-II": Peer(_named("nsga2"), 300),
    "pymoo NSGA-II": Peer(PymooNSGA2, constraints=False),
    "CMA-ES, weighted sum": Peer(WeightedSumCmaEs, constraints=False),
    "released MM-MO": Peer(ReleasedMMMO, constraints=False),
    "Optuna GP": Peer(_named("gp"), 60, most_objectives=3),
    "BoTorch qLogNEHVI": Peer(partial(AfterStartup, "botorch_peer.propose"), 60, constraints=False),
    "BoTorch SAAS": Peer(
        partial(AfterStartup, "botorch_peer.propose_by_saas"), 60, constraints=False, problems=LANGUAGE_MODELS
    ),
    "MAP": Peer(_named("map"), 60, constraints=False, problems=LANGUAGE_MODELS),
    "Ax": Peer(AxClientPeer, 60, constraints=False, problems=LANGUAGE_MODELS),
    "Ax quality": Peer(partial(AxClientPeer, method="quality"), 30, constraints=False, problems=WRITTEN),
    "qPOTS": Peer(partial(AfterStartup, "qpots_peer.propose"), 60, constraints=False, problems=LANGUAGE_MODELS),
    "HEBO": Peer(partial(AfterStartup, "hebo_peer.propose"), 30, constraints=False, problems=WRITTEN),
    "MM-MO paper": Peer(_ours(variant="paper"), constraints=False),
    "MM-MO": Peer(_ours()),
    "MM-MO, roughness": Peer(_ours(unexplained="roughness", **ALONE, trend="none")),
    "MM-MO coefficients": Peer(_ours(merge_features=False, **ALONE), 30, constraints=False),
    "MM-MO without anchors": Peer(_ours(n_startup=10, **ALONE, trend="none"), 30, anchors=False, constraints=False),
    "MM-MO ignoring constraints": Peer(_ours(), 60, constraints=False, problems=CONSTRAINED),
    "MM-MO, quadratic trend": Peer(
        _ours(trend="quadratic", **ALONE), 60, problems=("LoRAs", "weights 3-d", "residual", "attention")
    ),
    "MM-MO, budget quality": Peer(_ours(budget="quality", **ALONE), 30, problems=("weights 3-d",)),
    "MM-MO without margins": Peer(_ours(**ALONE), 60, problems=("LoRAs", "weights 3-d")),
    "MM-MO without a trend": Peer(_ours(trend="none", **ALONE), 60, problems=("LoRAs", "weights 3-d")),
}
