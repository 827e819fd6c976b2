"""MM-MO in several ways on the same problems, seed by seed: does a change of how it is computed, the number of workers,
or a piece of the published loop change what it finds?

    python -m benchmarks.search.paired climbs                 # on all samples of the front, or first on a part
    python -m benchmarks.search.paired workers [--seeds 10]   # one worker, 8 in turn, 8 that are blind to each other
    python -m benchmarks.search.paired paper                  # the published loop without each of its pieces

Prints a Markdown table: mean hypervolume of every way, and its mean difference from the first, seed by seed, with a
95 % interval.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t

from benchmarks.search.problem import Problem
from benchmarks.search.problems import PROBLEMS, Array
from benchmarks.search.runs import Run, append, read, run
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.base import Suggestion
from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler
from mergefront.optimizer.search.study_view import study_view

WORKERS = 8


class ClimbsOnAll(MMMOSampler):
    """Whose climbs see all samples of the front from their first iteration to their last."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._budget = replace(self._budget, climbed_samples=self._budget.samples)


class Blind(MMMOSampler):
    """Knows that other trials are under way, but not where: as of workers that ask at the same moment."""

    def _propose(self, study: Study, trial: FrozenTrial, encoder: Encoder) -> Suggestion:
        return super()._propose(study_view(study, _without_point), trial, encoder)


def _without_point(trial: FrozenTrial) -> FrozenTrial:
    if trial.state.is_finished():
        return trial
    shown = copy.copy(trial)
    shown._params, shown._distributions, shown._system_attrs = {}, {}, {}
    assert shown.state == TrialState.RUNNING
    return shown


class WithoutCrossover(MMMOSampler):
    """The published loop, whose candidates are evaluated as they are acquired."""

    _crossover = staticmethod(lambda elites, targets, rng: targets)


@dataclass(frozen=True)
class Comparison:
    """Ways by name, the first the one that others are compared with; each is a sampler and a number of workers."""

    problems: Mapping[str, Callable[[Path], Problem]]
    ways: Mapping[str, tuple[Callable[..., MMMOSampler], int]]
    evaluations: int


_PAPER = partial(MMMOSampler, variant="paper")
COMPARISONS: Mapping[str, Comparison] = {
    "climbs": Comparison(
        {
            name: PROBLEMS[name]
            for name in (
                "residual ties 6-d",
                "residual ties 10-d",
                "residual layers 24-d",
                "SmolLM2 written, weights 3-d",
                "SmolLM2 ordered, weights 3-d, 400 items",
            )
        },
        {"all samples": (ClimbsOnAll, 1), "a part": (MMMOSampler, 1)},
        evaluations=30,
    ),
    "workers": Comparison(
        {name: PROBLEMS[name] for name in ("residual ties 6-d", "residual ties 10-d", "DTLZ2 6-d")},
        {"one": (MMMOSampler, 1), "8 in turn": (MMMOSampler, WORKERS), "8 blind": (Blind, WORKERS)},
        evaluations=60,
    ),
    "paper": Comparison(
        {name: PROBLEMS[name] for name in ("SmolLM2-135M, three LoRAs", "SmolLM2-135M, three other LoRAs")},
        {
            "paper": (_PAPER, 1),
            "screen off": (partial(_PAPER, fisher_screen="off"), 1),
            "screen high": (partial(_PAPER, fisher_screen="high"), 1),
            "no crossover": (partial(WithoutCrossover, variant="paper"), 1),
            "neither": (partial(WithoutCrossover, variant="paper", fisher_screen="off"), 1),
            "one at a time": (partial(_PAPER, batch=1), 1),
            "2 Sobol points": (partial(_PAPER, n_startup=2), 1),
            "default, without a trend": (partial(MMMOSampler, trend="none"), 1),
        },
        evaluations=60,
    ),
}


def made(comparison: Comparison, folder: Path, seeds: Sequence[int]) -> list[Run]:
    """Every run, seed by seed; those that the folder holds are not made again."""
    kept = folder / "paired.jsonl"
    found = {(one.problem, one.sampler, one.seed): one for one in read(kept)}
    problems = {name: make(folder / "pools") for name, make in comparison.problems.items()}
    runs = []
    for seed in seeds:
        for name, problem in problems.items():
            for way, (sampler, workers) in comparison.ways.items():
                if (name, way, seed) not in found:
                    given: dict[str, Any] = {"search_space": problem.space.distributions(), "ranges": problem.ranges}
                    made_sampler = sampler(seed=seed, rule=problem.space.merge_rule, **given)
                    one = run(problem, made_sampler, way, seed, comparison.evaluations, workers=workers)
                    append(kept, one)
                    found[name, way, seed] = one
                    print(name, way, seed, round(one.hypervolumes[-1], 4), flush=True)
                runs.append(found[name, way, seed])
    return runs


def table(comparison: Comparison, runs: Sequence[Run]) -> str:
    lines = ["| problem | way | seeds | hypervolume | difference | ask, CPU s |", "| -- | -- | --: | --: | --: | --: |"]
    for problem in comparison.problems:
        first: list[float] = []
        for way in comparison.ways:
            here = [one for one in runs if (one.problem, one.sampler) == (problem, way)]
            values = [one.hypervolumes[-1] for one in here]
            first = first or values
            asked = np.median([second for one in here for second in one.ask_seconds])
            apart = "" if values is first else _with_interval(np.subtract(values, first))
            lines.append(f"| {problem} | {way} | {len(here)} | {np.mean(values):.4f} | {apart} | {asked:.2f} |")
    return "\n".join(lines)


def _with_interval(differences: Array) -> str:
    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return f"{differences.mean():+.4f} ± {half:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.paired",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=list(COMPARISONS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/search/results"), help="of networks and runs")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    comparison = COMPARISONS[arguments.what]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    print(table(comparison, made(comparison, arguments.folder, seeds)))


if __name__ == "__main__":
    main()
