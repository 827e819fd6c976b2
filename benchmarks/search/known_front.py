"""How good 24 points can be: a long evolutionary search, then a greedy choice of the points that dominate most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.search.language_models.problems import LIVE
from benchmarks.search.problem import Problem
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.scores.objectives import REFERENCE
from mergefront.optimizer.scores.pareto import hypervolume, nondominated

REMEMBERED = Path(__file__).with_name("known-fronts.json")
POINTS = 24
POPULATION = 60
GENERATIONS = 40


def best_points(problem: Problem) -> float:
    """Hypervolume of the best ``POINTS`` of what NSGA-II (pymoo) finds in ``POPULATION x GENERATIONS`` evaluations."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.problems.static import StaticProblem

    encoder = Encoder(problem.space.distributions())
    inside = [encoder.encode(anchor.params) for anchor in problem.anchors if not anchor.outside_space]
    random = np.random.default_rng(0).random((POPULATION, encoder.dimension))
    first = np.concatenate([np.array(inside).reshape(-1, encoder.dimension), random])[:POPULATION]
    target = PymooProblem(
        n_var=encoder.dimension,
        n_obj=len(problem.objectives),
        xl=np.zeros(encoder.dimension),
        xu=np.ones(encoder.dimension),
    )
    algorithm = NSGA2(pop_size=POPULATION, sampling=first)
    algorithm.setup(target, termination=("n_gen", GENERATIONS), seed=1, verbose=False)
    seen = [problem.normaliser.normalise(problem.evaluate(anchor.recipe, 0, 0).true) for anchor in problem.anchors]
    for _ in range(GENERATIONS):
        population = algorithm.ask()
        values = np.array(
            [
                problem.normaliser.normalise(problem.evaluate(problem.space.recipe(encoder.decode(x)), 0, 0).true)
                for x in encoder.snap(np.clip(population.get("X"), 0.0, 1.0))
            ]
        )
        seen += values.tolist()
        algorithm.evaluator.eval(StaticProblem(target, F=-values), population)
        algorithm.tell(infills=population)
    front = np.unique(np.array(seen)[nondominated(seen)], axis=0)
    reference = [REFERENCE] * len(problem.objectives)
    chosen: list[int] = []
    while len(chosen) < min(POINTS, len(front)):
        gains = [-1.0 if i in chosen else hypervolume(front[[*chosen, i]], reference) for i in range(len(front))]
        chosen.append(int(np.argmax(gains)))
    return hypervolume(front[chosen], reference)


def known(name: str, make: Callable[[], Problem], path: Path = REMEMBERED) -> float:
    """As ``best_points`` of the problem of that name, remembered in a file beside this one.

    NaN with constraints, which what it finds need not satisfy, and of live language models, whose 2400 merges would
    take an hour.
    """
    stored = json.loads(path.read_text()) if path.exists() else {}
    if name not in stored:
        if name in LIVE:
            return float("nan")
        problem = make()
        if problem.least:
            return float("nan")
        stored[name] = best_points(problem)
        path.write_text(json.dumps(stored, indent=1) + "\n")
    return float(stored[name])
