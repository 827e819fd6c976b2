"""Studies that stop by themselves: they say why, and go on when asked to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.errors import StudyFileError


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def with_stop(path: Path, stop: str, sampler: str = "mm-mo") -> Path:
    text = path.read_text().replace("sampler: random", f"sampler: {sampler}")
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("stop:")) + f"\nstop: {stop}\n")
    return path


@pytest.mark.long
def test_a_search_stops_when_little_is_to_be_gained_and_goes_on_when_resumed(tmp_path: Path, write_study) -> None:
    path = with_stop(write_study(tmp_path, evaluations=40), "{improvement: 10.0, asks: 3}")
    result = call("run", path)
    assert result.exit_code == 0, result.output
    storage = f"sqlite:///{tmp_path / 'mergefront.db'}"
    study = mf.load_study("skills", storage=storage)
    done = study.finished_count()
    assert done < 40 and study.stopped is not None and study.stopped.cause == "improvement"
    assert f"Stopped after {done} evaluations: 3 proposals in a row" in result.stderr
    facts = json.loads(call("status", "skills", "--storage", storage, "--json").stdout)
    assert facts["stopped"]["cause"] == "improvement" and facts["resume"] is not None
    assert "stopped       3 proposals" in call("status", "skills", "--storage", storage).stdout
    # At least as many proposals again, then the same.
    assert call("resume", "skills", "--storage", storage).exit_code == 0
    assert mf.load_study("skills", storage=storage).finished_count() == done + 3
    # Another rule is no other study.
    result = call("run", with_stop(path, "{hours: 5}"), "--evaluations", done + 5)
    assert result.exit_code == 0, result.output
    study = mf.load_study("skills", storage=storage)
    assert study.finished_count() == done + 5
    assert study.stopped is not None and study.stopped.cause == "budget" and "Stopped after" not in result.stderr


def test_no_time_means_no_evaluation(tmp_path: Path, write_study) -> None:
    study = mf.run(with_stop(write_study(tmp_path), "{hours: 0}"))
    assert study.finished_count() == 0 and study.stopped is not None and study.stopped.cause == "time"


@pytest.mark.parametrize(
    ("stop", "sampler", "problem"),
    [
        ("{hour: 1}", "mm-mo", "did you mean 'hours'"),
        ("{improvement: 0.1}", "tpe", "does not say what improvement it expects"),
        ("{improvement: 0.1}", "mm-mo, variant: paper", "does not say what improvement it expects"),
    ],
)
def test_a_rule_that_could_never_hold_is_a_problem_of_the_file(
    tmp_path: Path, write_study, stop: str, sampler: str, problem: str
) -> None:
    with pytest.raises(StudyFileError, match=problem):
        mf.run(with_stop(write_study(tmp_path), stop, sampler))
