"""How near the truth raced scores lie:  python -m benchmarks.evaluation.calibration [--table]

The candidates are those of full searches of 60 candidates (anchors included) by MM-MO, whose answers to all items are
kept in the cache. They race again, in their order, over so many items of each task, drawn anew for each run. The truth
is a candidate's mean over all of these items, its error the score that the study states in the end less the truth; the
stated error is what the items that were not asked leave open. Candidates that were asked everything are left out.
Finished runs are kept in the cache and not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import mergefront as mf
from benchmarks.evaluation.answers import answered
from benchmarks.evaluation.problems import ITEM_PROBLEMS, Array
from mergefront.optimizer.racing.race import ItemRace, RacingSettings
from mergefront.optimizer.racing.standings import Standings
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest
from mergefront.optimizer.scores.objectives import objectives_from
from mergefront.optimizer.seeding import derive_seed

COUNTS = (30, 60, 200, 1000)
CANDIDATES = 60
SEARCHES = 2


@dataclass(frozen=True)
class Answers:
    """``scores`` and, where a task has them, ``margins`` of all candidates (J x N) by task; ``anchors`` are the first
    so many."""

    anchors: int
    scores: Mapping[str, Array]
    margins: Mapping[str, Array]


@dataclass(frozen=True)
class Run:
    """``errors``, ``stated`` and ``plain`` (the error of the plain mean of what was asked) of candidates and tasks."""

    problem: str
    items: int
    seed: int
    asked: float
    errors: list[float]
    stated: list[float]
    plain: list[float]


def answers_of(name: str, search: int, cache: Path) -> Answers:
    """What the candidates of one full search of a problem answer."""
    kept = cache / f"answers-{list(ITEM_PROBLEMS).index(name)}-{search}.npz"
    if not kept.exists():
        built = ITEM_PROBLEMS[name].build(cache)
        with tempfile.TemporaryDirectory() as folder:
            study = mf.search(
                space=built.space,
                evaluate=built.evaluator,
                objectives=built.objectives,
                evaluations=CANDIDATES,
                seed=search,
                storage=f"sqlite:///{folder}/study.db",
                name="calibration",
            )
            found = study.ledger.evaluations(items=True)
            anchors = {one.digest for one in study.anchors()}
            study.database.close()
        order = sorted(found, key=lambda digest: digest not in anchors)
        tables = {f"scores {task}": [found[digest].items[task].scores for digest in order] for task in built.objectives}
        for task in built.objectives:
            if found[order[0]].items[task].margins is not None:
                tables[f"margins {task}"] = [found[digest].items[task].margins for digest in order]
        np.savez_compressed(kept, anchors=len(anchors), **{key: np.array(rows) for key, rows in tables.items()})
    with np.load(kept) as stored:
        scores, margins = (
            {key.removeprefix(kind): stored[key] for key in stored if key.startswith(kind)}
            for kind in ("scores ", "margins ")
        )
        return Answers(int(stored["anchors"]), scores, margins)


def run(name: str, items: int, seed: int, cache: Path) -> Run:
    """One race of all candidates of a search, and what its scores are worth."""
    known = answers_of(name, seed % SEARCHES, cache)
    drawn = {
        task: np.random.default_rng(derive_seed(seed, "calibration", task)).permutation(table.shape[1])[:items]
        for task, table in known.scores.items()
    }
    scores, margins = (
        {task: table[:, drawn[task]] for task, table in tables.items()} for tables in (known.scores, known.margins)
    )
    ids = {task: [str(place) for place in places] for task, places in drawn.items()}
    objectives = objectives_from(list(scores))
    finished: list[Evaluation] = []
    standings = Standings()
    for row in range(len(next(iter(scores.values())))):
        anchors = tuple(range(min(row, known.anchors)))
        race = ItemRace(RacingSettings(), seed, objectives, tuple(finished), anchors, row < known.anchors, standings)
        own = ({task: table[row] for task, table in tables.items()} for tables in (scores, margins))
        finished.append(answered(EvaluationRequest(tuple(scores), race=race), ids, *own))
    rows = [
        (estimates[task].mean - truth, estimates[task].unasked_error, one.items[task].mean - truth)
        for place, (one, estimates) in enumerate(zip(finished, standings.of(objectives, finished), strict=True))
        for task, table in scores.items()
        for truth in [table[place].mean()]
        if len(one.items[task].ids) < items
    ]
    asked = [len(one.items[task].ids) / items for one in finished for task in scores]
    errors, stated, plain = ([round(float(row[place]), 6) for row in rows] for place in range(3))
    return Run(name, items, seed, float(np.mean(asked)), errors, stated, plain)


def table(runs: Sequence[Run]) -> str:
    """The table of docs/benchmarks/racing.md; an interval is two standard errors between runs."""
    lines = [
        "| items | problem | runs | asked | error of the plain mean | error | mean stated error | stated / made | "
        "within two stated errors |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for items in COUNTS:
        together = [one for one in runs if one.items == items]
        for problem in ITEM_PROBLEMS:
            lines += _row(problem, [one for one in together if one.problem == problem])
        lines += _row("**all**", together)
    return "\n".join(lines)


def _row(problem: str, runs: Sequence[Run]) -> list[str]:
    if not runs:
        return []
    asked = 100 * float(np.mean([one.asked for one in runs]))
    begun = f"| {runs[0].items:,} | {problem} | {len(runs)} | {asked:.0f} % |"
    parts = [one for one in runs if one.errors]
    if not parts:
        return [f"{begun} 0 | 0 | 0 | exact | exact |"]
    errors, stated, plain = (
        np.concatenate([getattr(one, kind) for one in parts]) for kind in ("errors", "stated", "plain")
    )
    within = [100 * float(np.mean(np.abs(one.errors) <= 2 * np.array(one.stated))) for one in parts]
    ratios = [float(np.mean(one.stated)) / _root_mean_square(one.errors) for one in parts]
    return [
        f"{begun} {_root_mean_square(plain):.4f} | {_root_mean_square(errors):.4f} | {stated.mean():.4f} | "
        f"{stated.mean() / _root_mean_square(errors):.2f} ± {_spread(ratios):.2f} | "
        f"{100 * np.mean(np.abs(errors) <= 2 * stated):.1f} % ± {_spread(within):.1f} |"
    ]


def _root_mean_square(values: Sequence[float] | Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _spread(values: Sequence[float]) -> float:
    """Two standard errors of a mean."""
    return 2.0 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation.calibration", description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, help=f"draws of items, over {SEARCHES} searches a problem")
    parser.add_argument("--items", type=int, nargs="*", default=COUNTS, choices=COUNTS)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "evaluation_benchmark")
    parser.add_argument("--table", action="store_true", help="print the table of the finished runs only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    kept = arguments.cache / "calibration.jsonl"
    runs = [Run(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(one.problem, one.items, one.seed) for one in runs}
    seeds = range(0 if arguments.table else arguments.seeds)
    for seed, items, name in product(seeds, arguments.items, ITEM_PROBLEMS):
        if (name, items, seed) in done or items > ITEM_PROBLEMS[name].items:
            continue
        runs.append(run(name, items, seed, arguments.cache))
        with kept.open("a") as file:
            file.write(json.dumps(asdict(runs[-1])) + "\n")
        print(*_row(name, runs[-1:]), flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
