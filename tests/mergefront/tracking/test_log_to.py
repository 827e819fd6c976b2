"""Trials and the front are written to experiment trackers, and no tracker costs a search anything."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_study import NAME, small_study

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.errors import UserError
from mergefront.tracking import log_to
from mergefront.tracking.log_to import logged_to
from mergefront.tracking.tracker import FrontFacts, StudyFacts, TrialFacts

pytestmark = pytest.mark.filterwarnings("ignore::Warning")


class Memory:
    """A tracker that writes to memory: runs by their names, each a list of what it was told."""

    def __init__(self) -> None:
        self.runs: dict[str, list[TrialFacts | FrontFacts]] = {}
        self.closed: list[bool] = []

    def open(self, study: StudyFacts, run: str | None) -> Memory.Run:
        name = run or f"run {len(self.runs)}"
        return self.Run(name, self.runs.setdefault(name, []), self.closed)

    def trials(self, run: str = "run 0") -> list[TrialFacts]:
        return [told for told in self.runs[run] if isinstance(told, TrialFacts)]

    class Run:
        def __init__(self, run: str, told: list[Any], closed: list[bool]) -> None:
            self.run, self.told, self.closed = run, told, closed

        def trial_finished(self, trial: TrialFacts) -> None:
            self.told.append(trial)

        def front_changed(self, front: FrontFacts) -> None:
            self.told.append(front)

        def close(self, is_done: bool) -> None:
            self.closed.append(is_done)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def skills(tmp_path: Path, write_study: Callable[..., Path]) -> mf.Study:
    """Two objectives; some of its trials fail."""
    return mf.run(write_study(tmp_path, evaluations=24))


def test_every_trial_is_told_once_and_what_was_missed_later(skills: mf.Study) -> None:
    """Trials of other workers and of processes without a tracker are in the run as well."""
    book = Memory()
    with logged_to(skills, ["book"], {"book": book.open}) as tell:
        tell()
    told = book.trials()
    assert [trial.number for trial in told] == list(range(24)) and book.closed == [True]
    by_number = {candidate.number: candidate for candidate in skills.candidates()}
    for trial in told:
        if trial.number in by_number:
            assert trial.scores == by_number[trial.number].scores and trial.params == by_number[trial.number].params
    failed = {trial.number: trial.failure for trial in told if trial.failure is not None}
    assert failed == {failure.number: failure.reason for failure in skills.failures()} and failed
    for trial in told:
        until = [one for number, one in by_number.items() if number <= trial.number]
        measured = skills.hypervolume(until) if any(one.anchor is None for one in until) else None
        assert trial.hypervolume == (None if measured is None else pytest.approx(measured)), trial.number
    assert told[-1].hypervolume == pytest.approx(skills.hypervolume())
    fronts = [told for told in book.runs["run 0"] if isinstance(told, FrontFacts)]
    assert [member["trial"] for member in fronts[-1].members] == [one.number for one in skills.front()]

    more = mf.resume(skills, evaluations=27)
    with logged_to(more, ["book"], {"book": book.open}):
        pass
    assert list(book.runs) == ["run 0"] and [one.number for one in book.trials()] == list(range(27))
    with logged_to(more.copy(more.database, "twin"), ["book"], {"book": book.open}):
        pass
    assert len(book.trials("run 1")) == 27, "a copy is another study"


def test_a_tracker_that_fails_is_warned_of_once_and_catches_up(url: str, caplog: pytest.LogCaptureFixture) -> None:
    book = Memory()

    class Broken(Memory.Run):
        def trial_finished(self, trial: TrialFacts) -> None:
            if trial.number == 2:
                raise ConnectionError("https://me:hunter2@tracker refused token hf_abcdefghijkl")
            super().trial_finished(trial)

    study = small_study(url)
    with logged_to(
        study, ["book"], {"book": lambda facts, run: Broken("run 0", book.runs.setdefault("run 0", []), [])}
    ):
        pass
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("book takes no more of this search") and "hunter2" not in warning
    assert "hf_abc" not in warning and [trial.number for trial in book.trials()] == [0, 1]
    with logged_to(study, ["book"], {"book": book.open}):
        pass
    assert [trial.number for trial in book.trials()] == list(range(6)), "the same run, nothing twice"


def test_a_tracker_that_hangs_holds_up_neither_trials_nor_for_ever_the_end(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_to, "CLOSING_SECONDS", 0.2)
    let_go = threading.Event()

    def hang(facts: StudyFacts, run: str | None) -> Any:
        let_go.wait(60)
        raise TimeoutError

    study, started = small_study(url), time.monotonic()
    with logged_to(study, ["book"], {"book": hang}) as tell:
        tell()
        assert not let_go.is_set()
    assert time.monotonic() - started < 30
    let_go.set()
    assert "book is slow" in caplog.text


def test_unknown_and_missing_trackers_are_refused_before_anything_runs(
    tmp_path: Path, write_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path, evaluations=8)
    with pytest.raises(UserError, match="did you mean 'mlflow'"):
        mf.run(path, log_to="mlflows")
    monkeypatch.setattr("mergefront.tracking.trackers.find_spec", lambda name: None)
    result = CliRunner().invoke(cli, ["run", str(path), "--log-to", "wandb"])
    assert result.exit_code == 2 and 'pip install "mergefront[wandb]"' in result.stderr
    assert not (tmp_path / "mergefront.db").exists()


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow's file store in an empty folder."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    yield mlflow.MlflowClient(tracking_uri=f"file://{tmp_path}/mlruns")


def test_mlflow_has_scores_by_trial_and_the_front_and_resuming_goes_on_with_the_run(
    tmp_path: Path, write_study: Callable[..., Path], mlflow_store: Any
) -> None:
    path = write_study(tmp_path, evaluations=12)
    for command in (["run", path], ["resume", "skills", "--storage", tmp_path / "mergefront.db", "--evaluations", 14]):
        result = CliRunner().invoke(cli, [str(part) for part in (*command, "--log-to", "mlflow")])
        assert result.exit_code == 0 and "takes no more" not in result.stderr, result.output
        assert result.stdout.startswith("Study skills: "), "the front alone"
    study = mf.load_study("skills", storage=f"sqlite:///{tmp_path}/mergefront.db")
    experiment = mlflow_store.get_experiment_by_name("mergefront")
    (run,) = mlflow_store.search_runs([experiment.experiment_id])
    assert run.info.run_name == "skills" and run.info.status == "FINISHED"
    assert run.data.params["sampler"] == "random" and run.data.params["models"] == "maths, french"
    scores = {one.step: one.value for one in mlflow_store.get_metric_history(run.info.run_id, "maths")}
    assert scores == {candidate.number: candidate.scores["maths"] for candidate in study.candidates()}
    weights = {
        one.step: one.value for one in mlflow_store.get_metric_history(run.info.run_id, "coefficient weight_maths")
    }
    assert weights[13] == study.candidates()[-1].params["weight[maths]"]
    failed = {one.step for one in mlflow_store.get_metric_history(run.info.run_id, "failed") if one.value}
    assert failed == {failure.number for failure in study.failures()}
    assert run.data.metrics["hypervolume"] == pytest.approx(study.hypervolume())
    front = json.loads(next(tmp_path.glob("mlruns/*/*/artifacts/front.json")).read_text())
    assert [member["trial"] for member in front["front"]] == [one.number for one in study.front()]
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/trials/*.json"))) == 14


def test_an_unreachable_mlflow_costs_no_trial(url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    small_study(url, 5)
    study = mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties"), evaluate=lambda recipe: float(recipe.params["weight[a]"]),
        objectives=["score"], sampler="random", evaluations=8, storage=url, name=NAME + "2", log_to=["mlflow"],
    )  # fmt: skip
    assert study.finished_count() == 8 and not study.failures()
    assert sum("mlflow takes no more" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.long
def test_wandb_has_a_run_that_is_written_offline_and_resumed(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for variable, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(variable, value)
    study = small_study(url)
    names = set()
    for _ in range(2):
        with logged_to(study, ["wandb"]):
            pass
        names |= {os.path.basename(path).rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")}
    kept = study.optuna.user_attrs["mergefront:tracked"]["wandb"]
    assert names == {kept["run"]} and kept["up_to"] == 6 and kept["beyond"] == []
    table = next(tmp_path.glob("wandb/offline-run-*/files/media/table/front*.table.json"))
    content = json.loads(table.read_text())
    row = dict(zip(content["columns"], content["data"][0], strict=True))
    assert row["trial"] == study.best().number and row["score"] == study.best().scores["score"]
