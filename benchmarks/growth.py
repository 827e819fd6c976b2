"""What a study costs as it grows: CPU seconds and peak memory of each piece of work, in a process of its own.

    python -m benchmarks.growth [--only ROW] [--trials 3000]

The studies are written as rows, as a search would have left them. CPU seconds are of one core, without imports and
without making the study. Prints a Markdown table; "plain Optuna" is the same work by optuna-dashboard alone, on the
same study.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

import mergefront as mf
from benchmarks.service.storage_cost import grow
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

TRIALS = 3000
ITEMS = 10_000


def growing_study(url: str, trials: int, *, name: str = "growth", objectives: int = 3, items: int = 0) -> mf.Study:
    """A study of so many random trials: a weight and a density of each of eight models, written as rows.

    Objective i wants the weight of model i near 0.8 and the others' low. With ``items`` each objective is the share of
    so many right-or-wrong items whose difficulties are the same for all candidates.
    """
    models = [f"m{index}" for index in range(8)]
    names = [f"objective-{index}" for index in range(objectives)]
    ids = tuple(f"item-{index}" for index in range(items))
    difficulties = np.random.default_rng(1).uniform(size=(objectives, items))

    def score(recipe: mf.Recipe) -> Evaluation:
        weights = np.array([float(recipe.params.get(f"weight[{model}]", 0.0)) for model in models])
        others = (weights**2).sum() - weights[:objectives] ** 2
        values = 0.9 - (weights[:objectives] - 0.8) ** 2 - 0.1 * others
        if not items:
            return Evaluation(dict(zip(names, values.tolist(), strict=True)), dict.fromkeys(names, 0.01))
        right = (difficulties < values[:, None]).astype(float)
        scored = {name: ItemScores(ids, tuple(row.tolist())) for name, row in zip(names, right, strict=True)}
        errors = {name: one.standard_error for name, one in scored.items()}
        return Evaluation({name: one.mean for name, one in scored.items()}, errors, scored)

    study = mf.search(
        space=mf.MergeSpace(models, method="ties"),
        evaluate=score,
        objectives=names,
        sampler="random",
        evaluations=len(models) + 3,  # the anchors: base, experts, two averages
        storage=url,
        name=name,
        progress=False,
    )
    grow(study, trials, score)
    return mf.load_study(name, storage=url)


def report_page(url: str) -> Callable[[], object]:
    from mergefront.results.report.contents import contents
    from mergefront.results.report.page import page

    study = mf.load_study("growth", storage=url)
    return lambda: page(contents(study))


def distinct(url: str) -> Callable[[], object]:
    study = mf.load_study("growth", storage=url)
    return study.distinct_front


def hypervolume(url: str) -> Callable[[], object]:
    from mergefront.running.progress import SearchState

    study = mf.load_study("growth", storage=url)
    return lambda: SearchState(study).hypervolume


def dashboard(url: str) -> Callable[[], object]:
    from mergefront.serving.dashboard import dashboard_application
    from mergefront.storage.database import Database

    return _reload(dashboard_application(Database(url, create=False)))


def plain_dashboard(url: str) -> Callable[[], object]:
    import optuna
    from optuna_dashboard import wsgi

    return _reload(wsgi(optuna.storages.RDBStorage(url)))


def recipe_file(url: str) -> Callable[[], object]:
    from mergefront.serving.dashboard import dashboard_application
    from mergefront.storage.database import Database

    application = dashboard_application(Database(url, create=False))
    trials = mf.load_study("study-99", storage=url).optuna.get_trials(deepcopy=False)
    found = trials[-1]._trial_id
    return lambda: _get(application, f"/artifacts/100/{found}/0ec1be-{found}")


def _reload(application: Any) -> Callable[[], object]:
    """What a browser asks for when the page of a study is opened."""
    return lambda: [_get(application, path) for path in ("/api/studies", "/api/studies/1?after=0")]


def _get(application: Any, path: str) -> bytes:
    path, _, query = path.partition("?")
    told: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "HTTP_HOST": "127.0.0.1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": BytesIO(),
        "wsgi.errors": sys.stderr,
    }
    body = b"".join(application(environ, lambda status, headers, exc_info=None: told.append(status)))
    assert told[0].startswith("200"), (told, body[:200])
    return body


@dataclass(frozen=True)
class Row:
    """A piece of work: ``make`` writes its study into the database at a URL, ``ready`` returns the work itself."""

    make: Callable[[str, int], object]
    ready: Callable[[str], Callable[[], object]]
    trials: int
    plain: Callable[[str], Callable[[], object]] | None = None


def _hundred_studies(url: str, trials: int) -> None:
    for index in range(100):
        growing_study(url, trials, name=f"study-{index}")


def _of(**given: int) -> Callable[[str, int], object]:
    return lambda url, trials: growing_study(url, trials, **given)


ROWS: Mapping[str, Row] = {
    "report page": Row(_of(), report_page, TRIALS),
    f"front --distinct, {ITEMS:,} items": Row(_of(items=ITEMS, objectives=5), distinct, 100),
    "hypervolume after a trial, 8 objectives": Row(_of(objectives=8), hypervolume, 500),
    "dashboard, page of a study": Row(_of(), dashboard, TRIALS, plain_dashboard),
    "dashboard, a recipe file of 100 studies": Row(_hundred_studies, recipe_file, 30),
}


def _measured(work: Callable[[], object]) -> dict[str, float]:
    """CPU seconds of two calls, the second as a page is looked at again, and the process's peak memory in MB."""
    times = []
    for _ in range(2):
        begun = time.process_time()
        work()
        times.append(round(time.process_time() - begun, 2))
    return {"first": times[0], "again": times[1], "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def _in_process(row: str, url: str, which: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.growth", "--only", row, "--at", url, "--which", which]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(ROWS))
    parser.add_argument("--trials", type=int, help="of the studies, instead of each row's own number")
    parser.add_argument("--at", help=argparse.SUPPRESS)
    parser.add_argument("--which", choices=["ready", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.at:
        ready = getattr(ROWS[arguments.only], arguments.which)
        print(json.dumps(_measured(ready(arguments.at))))
        return
    print(
        "| work | trials | CPU s | again | MB | plain Optuna, CPU s | MB |\n| -- | --: | --: | --: | --: | --: | --: |"
    )
    for name, row in ROWS.items():
        if arguments.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            url, trials = f"sqlite:///{Path(folder) / 'growth.db'}", arguments.trials or row.trials
            row.make(url, trials)
            ours = _in_process(name, url, "ready")
            plain = _in_process(name, url, "plain") if row.plain else {"first": "", "MB": ""}
        cells = (name, trials, ours["first"], ours["again"], ours["MB"], plain["first"], plain["MB"])
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
