"""What storage costs a trial, and how long a large study takes to resume.

    python benchmarks/service/storage_cost.py [--trials 300] [--resume 10000] [--storage URL]

A trial here is everything but the evaluation and the sampler: the claim, the trial with 12 parameters, the
evaluation with 3 objectives, 2 tasks of 200 item scores each, the tell. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import TrialState, create_trial

import mergefront as mf
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

NAMES = ("a", "b", "c", "d", "e", "f")
ITEMS = tuple(f"item-{number}" for number in range(200))


def space() -> mf.MergeSpace:
    """Two coefficients for each of six models: 12 parameters."""
    return mf.MergeSpace(list(NAMES), method="ties")


def score(recipe: mf.Recipe) -> Evaluation:
    """Scores that cost nothing, with item scores as a real task has."""
    first, second = float(recipe.params["weight[a]"]), float(recipe.params["weight[b]"])
    items = {"a": ItemScores(ITEMS, (first,) * 200), "b": ItemScores(ITEMS, (second,) * 200)}
    return Evaluation({"a": first, "b": second, "c": 1 - first}, {"a": 0.01, "b": 0.01}, items, {"total": 0.0})


def grow(study: mf.Study, trials: int, score: Callable[[mf.Recipe], Evaluation]) -> None:
    """Fill a study up to so many trials, all rows at once, as the search would have written them."""
    from mergefront.optimizer.search.attributes import RECIPE, SLOT
    from mergefront.optimizer.search.ledger import Failure
    from mergefront.storage import schema
    from mergefront.storage.optuna_tables import tables

    moment = datetime(2026, 1, 1)
    distributions = study.space.distributions()
    ledger = study.ledger
    state = np.random.default_rng(0)
    with study.database.transaction() as connection:
        for number in range(study.finished_count(), trials):
            params = {name: float(state.uniform(0.11, 0.99)) for name in distributions}
            recipe = study.space.recipe(params)
            evaluation = score(recipe)
            values = [evaluation.scores[objective.name] for objective in study.objectives]
            template = create_trial(
                state=TrialState.COMPLETE,
                values=values,
                params=params,
                distributions=distributions,
                user_attrs={SLOT: number, RECIPE: recipe.digest},
            )
            made = tables.create_trial(connection, study.record.study_id, template)
            assert made.number == number and not isinstance(evaluation, Failure)
            ledger._keep(connection, number, recipe, evaluation, "search", moment)
            row = {"study_id": study.record.study_id, "slot": number, "trial_number": number}
            connection.execute(schema.claims.insert().values(**row, finished=True, deaths=0))
    study.database.close()


def flush_cost(folder: Path) -> float:
    """Milliseconds (median) that the disk takes to confirm four kilobytes: an evaluation's commit waits for that."""
    times = []
    with (folder / "flushed").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(times), 2)


def sampler_cost() -> float:
    """Milliseconds of CPU that the random sampler, the recipe and the scores take of each trial."""
    import optuna

    study = optuna.create_study(directions=["maximize"] * 3)
    begun = time.process_time()
    for _ in range(100):
        trial = study.ask(space().distributions())
        score(space().recipe(trial.params)).items["a"].mean  # noqa: B018
    return round(1e3 * (time.process_time() - begun) / 100, 2)


def search(storage: str, trials: int, observe: Any = None) -> mf.Study:
    extra = {} if observe is None else {"observe": observe}
    return mf.search(
        space=space(),
        evaluate=score,
        objectives=["a", "b", "c"],
        sampler="random",
        evaluations=trials,
        storage=storage,
        name="cost",
        **extra,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--resume", type=int, default=0, help="also grow the study to so many trials and resume it")
    parser.add_argument("--storage", help="default: SQLite in a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = arguments.storage or f"sqlite:///{Path(folder)}/cost.db"
        search(storage, 20)
        laps = [(time.perf_counter(), time.process_time())]
        search(storage, arguments.trials, lambda outcome: laps.append((time.perf_counter(), time.process_time())))
        result: dict[str, Any] = {"trials": arguments.trials, "sampler_ms": sampler_cost()}
        result["disk_flush_ms"] = flush_cost(Path(folder))
        for index, name in enumerate(("wall_ms_per_trial", "cpu_ms_per_trial")):
            costs = [1e3 * (after[index] - before[index]) for before, after in itertools.pairwise(laps[5:])]
            result[name] = {
                "median": round(statistics.median(costs), 2),
                "p95": round(statistics.quantiles(costs, n=20)[-1], 2),
            }
        if arguments.resume:
            grow(mf.load_study("cost", storage=storage), arguments.resume, score)
            times = []
            for extra in (1, 2, 3):
                begun = time.perf_counter()
                search(storage, arguments.resume + extra)
                times.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            study = mf.load_study("cost", storage=storage)
            front = study.front()
            result |= {
                "resume_and_one_trial_seconds": [round(seconds, 2) for seconds in times],
                "load_and_front_seconds": round(time.perf_counter() - begun, 2),
                "trials_at_resume": arguments.resume,
                "front": len(front),
            }
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
