"""What is searched: merges of the networks of ``experts``, recorded merges of a real language model, and two analytic
functions for sanity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.search.experts import Pool, PoolSpec, margins, trained_pool
from benchmarks.search.language_models.problems import LANGUAGE_MODEL_PROBLEMS
from benchmarks.search.problem import Problem, Scored, constrained
from benchmarks.search.recorded_landscape import RecordedLandscape
from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.seeding import derive_seed

Array = NDArray[np.float64]


class _Merges:
    """Merges of one pool. ``groups`` are the tasks whose mean score is one objective."""

    def __init__(self, pool: Pool, groups: Sequence[Sequence[str]], drawn_items: int | None) -> None:
        self.pool, self.groups, self.drawn = pool, groups, drawn_items
        self.engine = MergeEngine(pool.base, pool.experts, compile=False)
        self.merged = {name: tensor.clone() for name, tensor in pool.base.items()}
        self.seen: dict[str, list[Array]] = {}

    def margins(self, recipe: Recipe) -> list[Array]:
        if recipe.digest not in self.seen:
            self.engine.merge_into(recipe, self.merged)
            found = margins(self.pool, self.merged)
            self.seen[recipe.digest] = [
                torch.cat([found[task] for task in group]).double().numpy() for group in self.groups
            ]
        return self.seen[recipe.digest]

    def evaluate(self, recipe: Recipe, seed: int, number: int) -> Scored:
        found = self.margins(recipe)
        scores, errors, items = {}, {}, {}
        for j, values in enumerate(found):
            chosen = np.arange(len(values))
            if self.drawn is not None:
                rng = np.random.default_rng(derive_seed(seed, "items", number, j))
                chosen = np.sort(rng.choice(len(values), self.drawn, replace=False))
            right = (values[chosen] > 0).astype(float)
            name = objective_name(j)
            items[name] = ItemScores(
                tuple(f"{j}:{i}" for i in chosen), tuple(right.tolist()), tuple(values[chosen].tolist())
            )
            scores[name] = items[name].mean
            if self.drawn is not None:
                errors[name] = items[name].standard_error
        return Scored(Evaluation(scores, errors, items), tuple(float((values > 0).mean()) for values in found))


def objective_name(index: int) -> str:
    return f"skill{index}"


def _analytic(name: str, dimension: int, objectives: int, function: Callable[[Array], Array], folder: Path) -> Problem:
    space = MergeSpace(
        [f"x{i}" for i in range(dimension)], method="task_arithmetic", base_model="base", parameters={"weight": [0, 1]}
    )

    def evaluate(recipe: Recipe, seed: int, number: int) -> Scored:
        x = np.array([float(recipe.params[f"weight[x{i}]"]) for i in range(dimension)])
        values = function(x)
        return Scored(
            Evaluation({objective_name(j): float(value) for j, value in enumerate(values)}), tuple(values.tolist())
        )

    made = tuple(Objective(objective_name(j), "minimize") for j in range(objectives))
    return Problem(name, space, made, (), evaluate, tuple((1.0, 0.0) for _ in made))


def dtlz2(x: Array) -> Array:
    """Three objectives, minimised; the front is an eighth of the unit sphere (Deb et al. 2002)."""
    g = float(((x[2:] - 0.5) ** 2).sum())
    a, b = 0.5 * math.pi * x[0], 0.5 * math.pi * x[1]
    return (1 + g) * np.array([math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)])


def zdt1(x: Array) -> Array:
    """Two objectives, minimised; the front is 1 - sqrt(x0) (Zitzler, Deb, Thiele 2000)."""
    g = 1 + 9 * float(x[1:].mean())
    return np.array([x[0], g * (1 - math.sqrt(x[0] / g))])


@dataclass(frozen=True)
class RecordedLoras:
    """LoRAs of SmolLM2-135M, one a skill: ``folder`` has their ``data`` and ``loras``, ``landscape`` their margins."""

    folder: Path
    skills: tuple[str, ...]
    landscape: Path

    def made(self, name: str, folder: Path) -> Problem:
        return recorded_problem(name, RecordedLandscape.read(self.landscape))


HERE = Path(__file__).parent
SMOLLM: Mapping[str, RecordedLoras] = {
    "SmolLM2-135M, three LoRAs": RecordedLoras(
        HERE.parent.parent / "examples/smollm", ("french", "finnish", "sorting"), HERE / "smollm-landscape.npz"
    ),
    "SmolLM2-135M, three other LoRAs": RecordedLoras(
        HERE / "second_smollm", ("words", "german", "sorting"), HERE / "smollm-landscape-2.npz"
    ),
}


def recorded_problem(name: str, landscape: RecordedLandscape) -> Problem:
    """``record_smollm``'s landscape: task arithmetic of its LoRAs, one objective a skill."""
    ends = {(nodes[0], nodes[-1]) for nodes in landscape.axes.values()}
    ((low, high),) = ends
    experts = list(landscape.axes)
    space = MergeSpace(experts, base_model="base", method="task_arithmetic", parameters={"weight": [low, high]})

    def evaluate(recipe: Recipe, seed: int, number: int) -> Scored:
        found = landscape.at({expert: float(recipe.params[f"weight[{expert}]"]) for expert in experts})
        items = {
            skill: ItemScores(
                landscape.items[skill], tuple((values > 0).astype(float).tolist()), tuple(values.tolist())
            )
            for skill, values in found.items()
        }
        scores = {skill: scored.mean for skill, scored in items.items()}
        return Scored(Evaluation(scores, {}, items), tuple(scores.values()))

    objectives = tuple(Objective(skill) for skill in landscape.items)
    return Problem(name, space, objectives, tuple(anchors(space)), evaluate)


@dataclass(frozen=True)
class TrainedNetworks:
    """A problem of merges of networks trained on the spot. ``groups`` objectives, each the mean of some tasks' scores,
    one a task without; with ``drawn_items`` every evaluation draws so many items a task."""

    pool: PoolSpec
    space: Mapping[str, Any]
    groups: int | None = None
    drawn_items: int | None = None

    def made(self, name: str, folder: Path, network: int = 0) -> Problem:
        """The problem, its networks trained with ``network`` as their seed unless ``folder`` holds them."""
        pool = trained_pool(replace(self.pool, seed=network), folder)
        tasks = list(pool.experts)
        count = self.groups or len(tasks)
        grouped = [tasks[i * len(tasks) // count : (i + 1) * len(tasks) // count] for i in range(count)]
        space = MergeSpace(tasks, base_model="base", **self.space)
        merges = _Merges(pool, grouped, self.drawn_items)
        objectives = tuple(Objective(objective_name(j)) for j in range(count))
        return Problem(name, space, objectives, tuple(anchors(space)), merges.evaluate)


NETWORK = ", network "
"""Between a problem's name and the seed of its networks, where they are not the tables'."""
_TIES: Mapping[str, Any] = {"method": "ties", "parameters": {"weight": [0, 1], "density": [0.1, 1]}}
_ADDED: Mapping[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": [0, 1]}}

NETWORKS: Mapping[str, TrainedNetworks] = {
    "residual ties 6-d": TrainedNetworks(PoolSpec("residual", 3, 4, 200, (60, 200)), _TIES),
    "attention ties 6-d": TrainedNetworks(PoolSpec("attention", 3, 2, 100, (60, 150)), _TIES),
    "residual ties 10-d": TrainedNetworks(PoolSpec("residual", 5, 4, 120, (60, 200)), _TIES, groups=2),
    "residual ties 6-d, 60 drawn items": TrainedNetworks(
        PoolSpec("residual", 3, 4, 600, (60, 200)), _TIES, drawn_items=60
    ),
    "residual layers 24-d": TrainedNetworks(
        PoolSpec("residual", 3, 8, 200, (60, 200)), {**_ADDED, "granularity": "layers", "layers": 8}
    ),
    "residual layers 64-d": TrainedNetworks(
        PoolSpec("residual", 4, 16, 150, (60, 200)), {**_ADDED, "granularity": "layers", "layers": 16}
    ),
    "residual 16 experts": TrainedNetworks(PoolSpec("residual", 16, 4, 60, (200, 60)), _ADDED, groups=4),
}

PROBLEMS: Mapping[str, Callable[[Path], Problem]] = {
    **{name: partial(networks.made, name) for name, networks in NETWORKS.items()},
    **{name: partial(loras.made, name) for name, loras in SMOLLM.items()},
    **LANGUAGE_MODEL_PROBLEMS,
    "DTLZ2 6-d": partial(_analytic, "DTLZ2 6-d", 6, 3, dtlz2),
    "ZDT1 6-d": partial(_analytic, "ZDT1 6-d", 6, 2, zdt1),
    "residual ties 6-d, third skill at least 0.6": lambda folder: constrained(
        PROBLEMS["residual ties 6-d"](folder), "residual ties 6-d, third skill at least 0.6", 0.6
    ),
}


def on_other_networks(network: int) -> Mapping[str, Callable[[Path], Problem]]:
    """The problems of networks with all networks trained anew, ``network`` being their seed (the tables' is 0)."""
    named = {f"{name}{NETWORK}{network}": networks for name, networks in NETWORKS.items()}
    return {name: partial(networks.made, name, network=network) for name, networks in named.items()}
