"""What a part of the items says about all of them:  python -m benchmarks.evaluation.estimators

Random merges of a problem are scored on all 1,000 items of each task once (kept in the cache). Then a
few items of each are drawn, and the mean over all items is estimated: by the plain mean, by item response theory with
the anchors as parents, and by the joint model of all answers that racing uses, where the 40 merges answer a common half
of their items and each another other half.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.evaluation.item_response import fit_items, response_estimate
from benchmarks.evaluation.problems import PROBLEMS
from mergefront.optimizer.racing.joint_scores import joint_estimates
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.scores.evaluation import EvaluationRequest

MERGES = 40
DRAWS = 5
SIZES = (16, 32, 64, 128, 200)
ESTIMATES = ("plain mean", "mp-IRT", "gmp-IRT", "joint model")


def bank(place: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Item scores of the anchors and of random merges: a x tasks x n and m x tasks x n."""
    kept = cache / f"bank-{place}.npz"
    if not kept.exists():
        built = list(PROBLEMS.values())[place].build(cache)
        space, evaluator, names = built.space, built.evaluator, built.objectives
        rng = np.random.default_rng(0)
        known = [anchor.recipe for anchor in anchors(space)]
        cube = Encoder(space.distributions())
        drawn = [space.recipe(cube.decode(rng.random(cube.dimension))) for _ in range(MERGES)]
        rows = []
        for recipe in [*known, *drawn]:
            items = evaluator.evaluate(recipe, EvaluationRequest(names)).items
            rows.append([items[name].scores for name in names])
        np.savez(kept, rows=np.array(rows), anchors=len(known))
    loaded = np.load(kept)
    count = int(loaded["anchors"])
    return loaded["rows"][:count], loaded["rows"][count:]


def errors(known: np.ndarray, merges: np.ndarray) -> dict[int, list[float]]:
    """Root mean squared error of each estimate by number of items, over tasks, merges and draws."""
    tasks, items = known.shape[1:]
    squares: dict[int, list[list[float]]] = {size: [] for size in SIZES}
    for task in range(tasks):
        references = known[:, task]
        model = fit_items(references)
        for draw in range(DRAWS):
            base = np.random.default_rng([task, draw]).permutation(items)
            for size in SIZES:
                joint = joint_estimates(_answers(references, merges[:, task], base, size))[len(references) :]
                for merge, one in zip(merges[:, task], joint, strict=True):
                    asked = base[:size]
                    fitted = response_estimate(references, merge[asked], asked, model)
                    several = (fitted.mean, fitted.mp, fitted.gmp, one.mean)
                    squares[size].append([(value - merge.mean()) ** 2 for value in several])
    return {size: np.sqrt(np.mean(rows, axis=0)).tolist() for size, rows in squares.items()}


def _answers(references: np.ndarray, merges: np.ndarray, base: np.ndarray, size: int) -> np.ndarray:
    """What anchors and merges have answered when each was asked ``size`` items: half in common, half its own."""
    rows = np.full((len(references) + len(merges), len(base)), np.nan)
    rows[: len(references), base[:size]] = references[:, base[:size]]
    core, rest = base[: size // 2], base[size // 2 :]
    for number, merge in enumerate(merges):
        own = np.roll(rest, -number * (size - size // 2))[: size - size // 2]
        asked = np.concatenate([core, own])
        rows[len(references) + number, asked] = merge[asked]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.estimators", description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "evaluation_benchmark")
    parser.add_argument("--problem", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = errors(*bank(arguments.problem, arguments.cache))
    print(f"| items of 1,000 | {' | '.join(ESTIMATES)} |\n|{' --- |' * (len(ESTIMATES) + 1)}")
    for size, row in found.items():
        print(f"| {size} | {' | '.join(f'{value:.4f}' for value in row)} |")


if __name__ == "__main__":
    main()
