"""MM-MO in several ways on the same problems, seed by seed: does a change of how it is computed, the number of workers,
or a piece of the published loop change what it finds?

    python -m benchmarks.search.paired slopes                 # exact slopes or finite differences, each twice
    python -m benchmarks.search.paired workers [--seeds 10]   # one worker, 8 in turn, 8 that are blind to each other
    python -m benchmarks.search.paired paper                  # the published loop without each of its pieces

Prints a Markdown table: mean hypervolume of every way, and its mean difference from the first, seed by seed, with a
95 % interval.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t

from benchmarks.search.experts import PoolSpec
from benchmarks.search.problem import Problem
from benchmarks.search.problems import PROBLEMS, Array, TrainedNetworks
from benchmarks.search.runs import Run, append, read, run
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.base import Suggestion
from mergefront.optimizer.samplers.mmmo.merge_features import Gradient, MergeFeatures
from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler
from mergefront.optimizer.search.study_view import study_view

WORKERS = 8


class _ByDifferences(MergeFeatures):
    """With gradients as up to 32 coefficients, however many there are."""

    step = 1e-6

    def with_gradient(self, point: Array) -> tuple[Array, Gradient]:
        around = self(point + self.step * np.concatenate([np.zeros((1, len(point))), np.eye(len(point))]))
        return around[0], lambda in_features: (around[1:] - around[0]) @ in_features / self.step


class _ByShorterDifferences(_ByDifferences):
    step = 1e-7


class _ExactBeside(MergeFeatures):
    """With the exact gradient at a point that is half a step of the differences off."""

    def with_gradient(self, point: Array) -> tuple[Array, Gradient]:
        return self(point[None, :])[0], self.with_exact_gradient(point + 0.5 * _ByDifferences.step)[1]


class ByDifferences(MMMOSampler):
    _seen_by: type[MergeFeatures] = _ByDifferences

    def _features(self, encoder: Encoder) -> MergeFeatures:
        return self._seen_by(encoder, self._rule, self._merge_features)


class ByShorterDifferences(ByDifferences):
    _seen_by = _ByShorterDifferences


class ExactBeside(ByDifferences):
    _seen_by = _ExactBeside


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


_TIES_40 = TrainedNetworks(
    PoolSpec("residual", 20, 4, 60, (200, 60)),
    {"method": "ties", "parameters": {"weight": [0, 1], "density": [0.1, 1]}},
    groups=4,
)
_PAPER = partial(MMMOSampler, variant="paper")
COMPARISONS: Mapping[str, Comparison] = {
    "slopes": Comparison(
        {"residual ties 40-d": partial(_TIES_40.made, "residual ties 40-d")},
        {
            "finite differences": (ByDifferences, 1),
            "of a tenth of the step": (ByShorterDifferences, 1),
            "exact slopes": (MMMOSampler, 1),
            "half a step off": (ExactBeside, 1),
        },
        evaluations=43,
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
