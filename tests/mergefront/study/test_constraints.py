"""A study with constraints: only what satisfies them is on the front, and everything says so."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.results.verdict import verdict


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def score(recipe: mf.Recipe) -> Evaluation:
    a, b = (float(recipe.params.get(f"weight[{name}]", 0.5)) for name in "ab")
    return Evaluation({"first": a, "second": b, "size": a + b}, {"size": 0.01})


def search(folder: Path, constraints: list[str], sampler: str = "mm-mo", evaluations: int = 18) -> mf.Study:
    return mf.search(
        space=MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0.0, 1.0]}),
        evaluate=score,
        objectives=["first", "second"],
        constraints=constraints,
        sampler=sampler,
        evaluations=evaluations,
        storage=f"sqlite:///{folder / 'm.db'}",
        name=sampler,
    )


def test_front_best_knee_and_hypervolume_count_only_what_is_allowed(tmp_path: Path) -> None:
    study = search(tmp_path, ["size <= 0.8"])
    candidates = study.candidates()
    assert any(not candidate.feasible for candidate in candidates), "the experts alone have size 1"
    allowed = [candidate for candidate in candidates if candidate.feasible]
    assert allowed == [c for c in candidates if c.scores["first"] + c.scores["second"] <= 0.8]
    assert study.front() and all(candidate.feasible for candidate in study.front())
    assert study.knee().feasible and study.best("first").feasible
    assert study.hypervolume() == study.hypervolume(allowed) < study.hypervolume([]) + 2
    found = verdict(study)
    assert found is not None
    by_name = {candidate.anchor: candidate for candidate in study.anchors()}
    assert by_name[found.best_anchor].feasible
    proposed = [candidate for candidate in candidates if candidate.anchor is None][-6:]
    assert sum(candidate.feasible for candidate in proposed) >= 3
    assert max(sum(candidate.scores.values()) for candidate in proposed if candidate.feasible) > 0.7


@pytest.mark.cases(2)
@pytest.mark.parametrize("sampler", ["tpe", "tpe-multivariate", "nsga2", "nsga3", "gp", "random", "cma-es"])
def test_optuna_sees_the_constraints_and_its_samplers_run_with_them(tmp_path: Path, sampler: str) -> None:
    if sampler == "cma-es":
        with pytest.raises(UserError, match="'cma-es' does not know constraints; these do: mm-mo"):
            search(tmp_path, ["size <= 0.8"], sampler)
        return
    study = search(tmp_path, ["size <= 0.8", "first >= 0.01"], sampler, 14)
    trials = study.optuna.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert len(trials) == 14
    for trial in trials:
        assert trial.constraints == pytest.approx({"0": sum(trial.values) - 0.8, "1": 0.01 - trial.values[0]})
        assert trial.user_attrs["mergefront:constraints"]["size <= 0.8"] == pytest.approx(sum(trial.values))
        assert trial.user_attrs["mergefront:constraint_errors"] == [0.01, None]
    assert {trial.number for trial in study.optuna.best_trials} >= {c.number for c in study.front()}


@pytest.mark.cases(1)
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_constraints_reach_optunas_samplers(tmp_path: Path, sampler: str) -> None:
    """The same study without constraints proposes other points."""

    def points(constraints: list[str], name: str) -> list[object]:
        (tmp_path / name).mkdir()
        study = search(tmp_path / name, constraints, sampler, 13)
        return [dict(candidate.params) for candidate in study.candidates()]

    assert points(["size <= 0.3"], "bound") != points([], "free")


def test_nothing_allowed_yet_is_said_and_not_a_crash(tmp_path: Path) -> None:
    study = search(tmp_path, ["size <= -1"], "random", 6)
    assert study.front() == [] and study.hypervolume() == 0.0
    with pytest.raises(
        UserError, match=r"No candidate satisfies the constraints yet. Trial 0 .* misses size <= -1 by 1"
    ):
        study.knee()
    for command in (("front", "random"), ("front", "random", "--json"), ("status", "random"), ("studies",)):
        result = call(*command, "--storage", tmp_path / "m.db")
        assert result.exit_code == 0, result.output
    text = call("front", "random", "--storage", tmp_path / "m.db").stdout
    assert "6 violate a constraint" in text and "No candidate satisfies the constraints yet" in " ".join(text.split())
    picture = call("front", "random", "--storage", tmp_path / "m.db", "--plot", tmp_path / "f.png")
    assert picture.exit_code == 0, picture.output


def test_a_study_file_says_constraints_and_the_command_line_shows_them(tmp_path: Path, write_study) -> None:
    path = write_study(tmp_path, evaluations=12)
    path.write_text(path.read_text() + "constraints:\n- delta_l1 <= 900\n- {name: maths, at_least: 0.05}\n")
    result = call("run", path)
    assert result.exit_code == 0, result.output
    assert "violates a constraint" in result.stderr and "infeasible" in result.stderr
    assert "Constraints: delta_l1 <= 900, maths >= 0.05" in result.stdout
    assert "✗ anchor that violates a constraint" in result.stdout
    content = json.loads(call("front", "skills", "--storage", tmp_path / "mergefront.db", "--json").stdout)
    assert content["constraints"] == ["delta_l1 <= 900", "maths >= 0.05"]
    assert content["infeasible"] and all(max(e["violations"].values()) > 0 for e in content["infeasible"])
    # Other constraints are another study.
    path.write_text(path.read_text().replace("900", "800"))
    assert call("run", path).exit_code == 2


def test_wrong_constraints_are_problems_of_the_file(tmp_path: Path, write_study) -> None:
    path = write_study(tmp_path)
    text = path.read_text()
    for written, problem in (("[delta < 3]", "must be written like"), ("[{name: x, atmost: 3}]", "at_most")):
        path.write_text(f"{text}constraints: {written}\n")
        with pytest.raises(StudyFileError, match=problem):
            mf.run(path)
    path.write_text(f"{text}constraints: ['delta_l1 <= 3']\n".replace("sampler: random", "sampler: map"))
    with pytest.raises(StudyFileError, match="'map' does not know constraints"):
        mf.run(path)


def test_a_constrained_number_is_told_by_an_outside_harness(tmp_path: Path, write_study) -> None:
    path = write_study(tmp_path, evaluations=1)
    path.write_text(path.read_text() + "constraints: ['tokens <= 300']\n")
    assert call("run", path).exit_code == 1  # the function does not report tokens: its one trial failed
    storage = f"sqlite:///{tmp_path / 'mergefront.db'}"
    study = mf.load_study("skills", storage=storage)
    assert "constrained number 'tokens' was not reported" in study.failures()[0].reason
    assert call("run", path, "--evaluations", 1).exit_code == 1
    from mergefront.storage.studies import update

    update(study.database, study.record, evaluations=3)
    asked = mf.load_study("skills", storage=storage).ask()
    assert asked is not None
    with pytest.raises(UserError, match="tokens"):
        mf.load_study("skills", storage=storage).tell(asked.trial, {"maths": 0.5, "french": 0.5})
    mf.load_study("skills", storage=storage).tell(asked.trial, {"maths": 0.5, "french": 0.5, "tokens": 310})
    assert [c.violations for c in mf.load_study("skills", storage=storage).candidates()] == [{"tokens <= 300": 10.0}]
