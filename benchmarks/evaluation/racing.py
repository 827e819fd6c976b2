"""Racing against full evaluation:  python -m benchmarks.evaluation.racing [--minutes M] [--table]

Every run is a search of 30 candidates (anchors included) by MM-MO. Its result is the front that the
study hands back, whose members are then scored on all 1,000 items of each task, and the hypervolume
of those scores, normalised by the anchors on all items. "a fixed part" asks every candidate the same
items, as many as racing may pay on average. "of all tried" is the hypervolume of every candidate that was tried: what
the search found, before the front was picked. Finished runs are kept in the cache and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import mergefront as mf
from benchmarks.evaluation.problems import PROBLEMS, Built
from mergefront.optimizer.racing.race import ItemRace, RacingSettings
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import RACED, Evaluation, EvaluationRequest, Evaluator
from mergefront.optimizer.scores.objectives import Normaliser, objectives_from
from mergefront.optimizer.scores.pareto import hypervolume

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks" / "racing.md"
CANDIDATES = 30
SHARE = 0.2
FIXED = "fixed part"
WITH_MORE = {"racing, 40 candidates": 40, "racing, 60 candidates": 60, f"{FIXED}, 60 candidates": 60}
"""These spend as many items on more candidates, each with a smaller share of the items."""
ARMS = ("full", "racing", FIXED, *WITH_MORE)


@dataclass(frozen=True)
class Run:
    problem: str
    arm: str
    seed: int
    hypervolume: float
    of_all_tried: float
    items: int
    front: int
    stopped: dict[str, int]
    seconds: float


class FixedPart:
    """A race that asks every candidate the same first items of each task, whatever it answers."""

    def __init__(self, share: float) -> None:
        self.share = RacingSettings(items=share)

    def start(self, items: Mapping[str, Sequence[str]], exact: Mapping[str, float]) -> Any:
        race = ItemRace(self.share, 0, (), is_anchor=True)
        return race.start(items, exact)


class FixedPartEvaluator:
    """Puts the fixed part in the place of whatever the search asks."""

    def __init__(self, evaluator: Evaluator, share: float) -> None:
        self.evaluator, self.part = evaluator, FixedPart(share)

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        return self.evaluator.evaluate(recipe, replace(request, race=cast(ItemRace, self.part)))


def run(name: str, arm: str, seed: int, cache: Path) -> Run:
    """One search, and its front scored on all items."""
    built = PROBLEMS[name].build(cache)
    candidates = WITH_MORE.get(arm, CANDIDATES)
    share = SHARE * CANDIDATES / candidates
    fixed = arm.startswith(FIXED)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        study = mf.search(
            space=built.space,
            evaluate=FixedPartEvaluator(built.evaluator, share) if fixed else built.evaluator,
            objectives=built.objectives,
            evaluations=candidates,
            seed=seed,
            racing=False if fixed or arm == "full" else {"items": share},
            storage=f"sqlite:///{folder}/study.db",
            name="benchmark",
        )
        seconds = time.perf_counter() - begun
        front = [candidate.recipe for candidate in study.front()]
        tried = {candidate.recipe.digest: candidate.recipe for candidate in study.candidates()}
        finished = study.ledger.evaluations()
        known = {digest: dict(one.scores) for digest, one in finished.items()} if arm == "full" else {}
        paid = sum(evaluation.cost["items"] for evaluation in finished.values())
        stopped: dict[str, int] = {}
        for evaluation in finished.values():
            why = str(evaluation.details.get(RACED, {}).get("stopped", "all items"))
            stopped[why] = stopped.get(why, 0) + 1
        study.database.close()
    request = EvaluationRequest(built.objectives)
    baseline = _baseline(name, built, cache)
    normaliser = Normaliser.from_anchors(objectives_from(built.objectives), baseline)
    points = {
        digest: normaliser.normalise([scores[one] for one in built.objectives])
        for digest, recipe in tried.items()
        for scores in [known.get(digest) or built.evaluator.evaluate(recipe, request).scores]
    }
    volume = hypervolume([points[recipe.digest] for recipe in front], normaliser.reference_point)
    of_all = hypervolume(list(points.values()), normaliser.reference_point)
    return Run(name, arm, seed, volume, of_all, int(paid), len(front), stopped, seconds)


def _baseline(name: str, built: Built, cache: Path) -> list[list[float]]:
    """The anchors' scores on all items, which every run of a problem is normalised by."""
    kept = cache / f"anchors-{list(PROBLEMS).index(name)}.json"
    if not kept.exists():
        request = EvaluationRequest(built.objectives)
        scored = [built.evaluator.evaluate(anchor.recipe, request).scores for anchor in anchors(built.space)]
        kept.write_text(json.dumps([[row[name] for name in request.objectives] for row in scored]))
    rows: list[list[float]] = json.loads(kept.read_text())
    return rows


def table(runs: list[Run]) -> str:
    """The table of docs/benchmarks/racing.md."""
    lines = [
        "| problem | items asked | seeds | hypervolume, mean (worst) | against full (± standard error) | of all "
        "tried | front | items paid |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for problem in PROBLEMS:
        full = {one.seed: one for one in runs if one.problem == problem and one.arm == "full"}
        for arm in ARMS:
            several = [one for one in runs if one.problem == problem and one.arm == arm and one.seed in full]
            if not several:
                continue
            volumes = [one.hypervolume for one in several]
            aim = statistics.mean(full[one.seed].hypervolume for one in several)
            gaps = [one.hypervolume / full[one.seed].hypervolume for one in several]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            tried = statistics.mean(one.of_all_tried for one in several)
            items = statistics.mean(one.items / full[one.seed].items for one in several)
            gap = f"{_percent(statistics.mean(volumes) / aim - 1)} ± {100 * error:.1f} | {_percent(tried / aim - 1)}"
            lines.append(
                f"| {problem} | {arm} | {len(several)} | {statistics.mean(volumes):.4f} ({min(volumes):.4f}) | "
                f"{'| ' if arm == 'full' else gap} | {statistics.mean(one.front for one in several):.0f} | "
                f"{100 * items:.1f} % |"
            )
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.racing", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after so many minutes")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--problem", type=int, nargs="*", help="only these problems, by their place in the table")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "evaluation_benchmark")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    kept = arguments.cache / "racing.jsonl"
    runs = [Run(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(one.problem, one.arm, one.seed) for one in runs}
    begun = time.monotonic()
    names = list(PROBLEMS)
    chosen = names if arguments.problem is None else [names[place] for place in arguments.problem]
    planned = (
        []
        if arguments.table
        else [
            (p, s, a)
            for p in chosen
            for s in range(arguments.first, arguments.first + arguments.seeds)
            for a in arguments.arms
        ]
    )
    for problem, seed, arm in planned:
        if (problem, arm, seed) in done:
            continue
        if time.monotonic() - begun > 60 * arguments.minutes:
            break
        finished = run(problem, arm, seed, arguments.cache)
        runs.append(finished)
        with kept.open("a") as file:
            file.write(json.dumps(asdict(finished)) + "\n")
        print(json.dumps(asdict(finished)), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
