"""How near samplers come to the front of a whole recorded grid, on sets of LoRAs of SmolLM2-135M.

    python -m benchmarks.search.grid_front [--seeds 10] [--samplers MAP random MM-MO] [--evaluations 60]

Hypervolume as a share of that of the grid's front, and IGD: the mean distance from a point of the grid's front to the
nearest one that was found. Both of true scores, normalised by the anchors; means over seeds with 95 % intervals.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import t

from benchmarks.search.language_models.problems import SKILL_MERGES
from benchmarks.search.peers import PEERS
from benchmarks.search.problem import Problem, Scored
from benchmarks.search.problems import HERE, PROBLEMS, SMOLLM, Array
from benchmarks.search.recorded_landscape import RecordedLandscape
from benchmarks.search.runs import run
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.objectives import REFERENCE
from mergefront.optimizer.scores.pareto import hypervolume, nondominated

LANDSCAPES = {
    **{name: loras.landscape for name, loras in SMOLLM.items()},
    **{name: SKILL_MERGES[name].landscape for name in ("SmolLM2 written, weights 3-d",)},
}


def front(rows: Array) -> Array:
    return np.unique(rows[nondominated(rows)], axis=0)


def of_grid(problem: Problem, landscape: RecordedLandscape) -> Array:
    """The front of all nodes, normalised."""
    rows = []
    for node in product(*landscape.axes.values()):
        weights = {f"weight[{name}]": float(value) for name, value in zip(landscape.axes, node, strict=True)}
        rows.append(problem.normaliser.normalise(problem.evaluate(problem.space.recipe(weights), 0, 0).true))
    return front(np.array(rows))


def found(problem: Problem, sampler: str, seed: int, evaluations: int) -> Array:
    """The front of a run, normalised."""
    true = []

    def kept(recipe: Recipe, of_run: int, number: int) -> Scored:
        scored = problem.evaluate(recipe, of_run, number)
        true.append(scored.true)
        return scored

    watched = replace(problem, evaluate=kept)
    true.clear()  # what the anchors' normalisation asked
    run(watched, PEERS[sampler].make(watched, seed), sampler, seed, evaluations)
    return front(np.array([problem.normaliser.normalise(row) for row in true]))


def with_interval(values: list[float]) -> str:
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.grid_front", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", nargs="*", default=["MAP", "random", "MM-MO"])
    parser.add_argument("--evaluations", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| set | sampler | hypervolume of the grid's | IGD |\n| -- | -- | -- | -- |")
    for name, path in LANDSCAPES.items():
        problem = PROBLEMS[name](HERE / "results" / "pools")
        grid = of_grid(problem, RecordedLandscape.read(path))
        reference = [REFERENCE] * len(problem.objectives)
        whole = hypervolume(grid, reference)
        for sampler in given.samplers:
            fronts = [found(problem, sampler, seed, given.evaluations) for seed in range(given.seeds)]
            shares = [hypervolume(one, reference) / whole for one in fronts]
            distances = [float(cdist(grid, one).min(axis=1).mean()) for one in fronts]
            print(f"| {name} | {sampler} | {with_interval(shares)} | {with_interval(distances)} |", flush=True)


if __name__ == "__main__":
    main()
