"""``merge: {training_run: DIR}``: the checkpoints of a Trainer are the experts, weighed by what it logged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_study import write_local_study

import mergefront as mf
from mergefront.adapters.starting.training_run import trained_checkpoints
from mergefront.study.check import check_study

HISTORY = [
    {"step": 10, "loss": 3.0, "epoch": 1.0},
    {"step": 20, "eval_loss": 2.0, "eval_accuracy": 0.25},
    {"step": 30, "loss": 2.5},
    {"step": 40, "eval_loss": 1.0, "eval_accuracy": 0.5},
    {"step": 100, "eval_loss": 4.0, "eval_accuracy": 0.75},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the Trainer leaves it: every state has the history up to its own step."""
    folder = tmp_path_factory.mktemp("run")
    write_local_study(folder, "plain")
    for step, name in ((20, "one"), (40, "two"), (100, "base")):
        path = shutil.copytree(folder / name, folder / "out" / f"checkpoint-{step}")
        history = [entry for entry in HISTORY if entry["step"] <= step]
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    (folder / "out" / "runs").mkdir()
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(models, tmp_path / "study")


def written(folder: Path, merge: dict[str, Any]) -> Path:
    content = yaml.safe_load((folder / "plain.yaml").read_text())
    content["merge"] = {"method": "metrics_weighted", "base_model": "base", "training_run": "out", **merge}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_checkpoints_are_weighed_by_the_inverse_of_their_loss(folder: Path) -> None:
    report = check_study(written(folder, {}))
    space = report.definition_or_raise().space
    assert dict(space.models) == {f"checkpoint-{step}": f"out/checkpoint-{step}" for step in (20, 40, 100)}
    metrics = {"metric[checkpoint-20]": 0.5, "metric[checkpoint-40]": 1.0, "metric[checkpoint-100]": 0.25}
    assert space.fixed == metrics and list(space.searched) == ["penalty"]
    assert any("eval_loss: checkpoint-20 2, checkpoint-40 1, checkpoint-100 4" in note for note in report.notes)
    study = mf.run(written(folder, {}), evaluations=7, progress=False)
    assert study.finished_count() == 7 and not study.failures()
    # What the database keeps is enough to go on, and a run that has grown is another study.
    shutil.copytree(folder / "out" / "checkpoint-40", folder / "out" / "checkpoint-200")
    (problem,) = check_study(written(folder, {})).problems
    assert "checkpoint-200 has no eval_loss: none was logged at step 200" in problem


def test_other_methods_take_the_checkpoints_as_experts(folder: Path) -> None:
    space = check_study(written(folder, {"method": "linear"})).definition_or_raise().space
    assert list(space.searched) == [f"weight[checkpoint-{step}]" for step in (20, 40, 100)]


@pytest.mark.parametrize(
    ("metric", "greater", "name", "qualities"),
    [
        (None, None, "eval_loss", [0.5, 1.0, 0.25]),
        ("accuracy", None, "eval_accuracy", [0.25, 0.5, 0.75]),
        ("eval_accuracy", False, "eval_accuracy", [4.0, 2.0, 4 / 3]),
        ("loss", None, "loss", [1 / 3, 0.4, 0.4]),
    ],
)
def test_the_metric_is_one_of_the_log(
    models: Path, metric: str | None, greater: bool | None, name: str, qualities: list[float]
) -> None:
    found, checkpoints = trained_checkpoints(models / "out", metric, greater)
    assert found == name and [one.quality for one in checkpoints] == pytest.approx(qualities)


def spoil_header(out: Path) -> None:
    file = out / "checkpoint-40" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def spoil_value(out: Path) -> None:
    file = out / "checkpoint-100" / "trainer_state.json"
    file.write_text(file.read_text().replace("4.0", "0.0"))


@pytest.mark.parametrize(
    ("spoil", "merge", "problem"),
    [
        (spoil_header, {}, "checkpoint-40 cannot be read"),
        (lambda out: (out / "checkpoint-40" / "trainer_state.json").unlink(), {}, "has no trainer_state.json"),
        (spoil_value, {}, "checkpoint-100: eval_loss is 0; weights are powers of it"),
        (lambda out: [shutil.rmtree(path) for path in out.glob("checkpoint-*")], {}, "has no folder checkpoint-N"),
        (lambda out: None, {"training_run": "uot"}, "uot: there is no such folder"),
        (lambda out: None, {"training_run": {"folder": "out", "metric": "eval_acuracy"}}, "did you mean"),
        (lambda out: None, {"training_run": {"folder": "out", "metrik": "loss"}}, "unknown key 'metrik'"),
        (lambda out: None, {"models": {"a": "one"}}, "leave merge.models out"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_in_a_line(folder: Path, spoil: Any, merge: dict, problem: str) -> None:
    spoil(folder / "out")
    (found,) = check_study(written(folder, merge)).problems
    assert found.startswith("merge.training_run") and problem in found
