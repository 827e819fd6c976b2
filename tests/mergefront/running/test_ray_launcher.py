"""Many workers on a Ray cluster, a real one on this machine: one budget, nothing twice, errors reach the caller."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mergefront as mf
from mergefront.running.ray_launcher import reachable_url, share
from mergefront.storage.schema import claims


def search(folder: Path, evaluate: Any, **options: Any) -> mf.Study:
    return mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties"),
        evaluate=evaluate,
        objectives=["score"],
        sampler="random",
        storage=f"sqlite:///{folder}/study.db",
        name="on-ray",
        launcher="ray",
        **options,
    )


@pytest.fixture(scope="module")
def ray() -> Iterator[ModuleType]:
    """A Ray cluster of two processors on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="needs the extra 'ray'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.long
def test_workers_share_a_budget_and_a_killed_one_loses_nothing(ray: ModuleType, tmp_path: Path) -> None:
    died, calls = tmp_path / "died", tmp_path / "calls"

    def evaluate(recipe: mf.Recipe) -> float:
        if recipe.params["weight[a]"] == 1.0 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with calls.open("a") as lines:
            lines.write(f"{recipe.digest}\n")
        return float(recipe.params["weight[a]"])

    told: list[int] = []
    study = search(
        tmp_path, evaluate, workers=2, evaluations=12, on_trial_end=lambda outcome: told.append(outcome.number)
    )
    assert died.exists()
    trials = study.optuna.get_trials(deepcopy=False)
    assert [(trial.number, trial.state.name) for trial in trials] == [(number, "COMPLETE") for number in range(12)]
    assert sorted(told) == list(range(12)), "each trial is observed once"
    assert set(Counter(calls.read_text().split()).values()) == {1}, "nothing that finished ran again"
    with study.database.reading() as connection:
        deaths = connection.execute(claims.select().with_only_columns(claims.c.deaths)).scalars().all()
    assert sum(deaths) == 1


@pytest.mark.long
def test_what_stops_a_worker_reaches_the_caller_and_stops_the_rest(ray: ModuleType, tmp_path: Path) -> None:
    def evaluate(recipe: mf.Recipe) -> float:
        raise ValueError("the data is not there")

    with pytest.raises(mf.SearchStoppedError, match="the data is not there"):
        search(tmp_path, evaluate, workers=1, evaluations=50)
    study = mf.load_study("on-ray", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(study.failures()) == 5


def test_without_ray_one_message_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(mf.UserError, match=r'pip install "mergefront\[ray\]"'):
        search(tmp_path, lambda recipe: 0.0, evaluations=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("takes_gpus", "resources", "workers", "expected"),
    [
        (True, {"CPU": 64.0, "GPU": 4.0}, None, (4, 1)),
        (True, {"CPU": 64.0, "GPU": 4.0}, 2, (2, 1)),
        (True, {"CPU": 6.0}, None, (6, 0)),
        (True, {"CPU": 600.0}, None, (30, 0)),
        (False, {"CPU": 6.0, "GPU": 4.0}, None, (6, 0)),
        (False, {"CPU": 6.0, "GPU": 4.0}, None, (6, 0)),
    ],
)
def test_a_worker_has_a_gpu_of_its_own_where_there_are_some(
    takes_gpus: bool, resources: dict[str, float], workers: int | None, expected: tuple[int, int]
) -> None:
    count, needs = share(resources, takes_gpus, workers, most=30)
    assert (count, needs["num_gpus"]) == expected


def test_an_sqlite_file_is_refused_to_several_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reachable_url("sqlite:///study.db", 1) == f"sqlite:///{tmp_path}/study.db"
    server = "postgresql+psycopg://me:secret@db/merges"
    assert reachable_url(server, 3) == server
    with pytest.raises(mf.UserError, match="3 machines cannot share it"):
        reachable_url("sqlite:///study.db", 3)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"workers": 2, "launcher": None}, "needs a launcher"),
        ({"workers": 0}, "at least 1"),
        ({"launcher": "dask"}, "'dask' is not known"),
    ],
)
def test_a_wrong_launcher_is_refused(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(mf.UserError, match=problem):
        mf.run(tmp_path / "study.yaml", **{"launcher": "ray", **options})
