"""Studies begun by an older version go on as they were: a release must never change what somebody's study means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.search.attributes import RECIPE
from mergefront.running.worker import work
from mergefront.study.check import check_study

OLD = Path(__file__).parents[2] / "fixtures" / "old_studies"
CASES = sorted(path.parent.name for path in OLD.glob("*/study.yaml"))
RUN = [case for case in CASES if case not in ("asked", "raced")]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The old studies with their files, in another folder than the one they were begun in."""
    return Path(shutil.copytree(OLD, tmp_path / "moved"))


def expected(case: str) -> dict[str, Any]:
    return dict(json.loads((OLD / case / "expected.json").read_text(encoding="utf-8")))


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/mergefront.db"


def assert_as_expected(study: mf.Study, case: str) -> None:
    """The trials and the front are those that the older version arrived at."""
    wanted = expected(case)
    trials = study.optuna.get_trials(deepcopy=False)
    assert [trial.state.name for trial in trials] == [entry["state"] for entry in wanted["trials"]]
    for trial, entry in zip(trials, wanted["trials"], strict=True):
        assert trial.params == pytest.approx(entry["params"], rel=1e-9, abs=1e-9), trial.number
        if entry["values"] is not None:
            assert trial.values == pytest.approx(entry["values"], rel=1e-9, abs=1e-9), trial.number
    assert [member.number for member in study.front()] == [member["trial"] for member in wanted["front"]["front"]]
    assert study.hypervolume() == pytest.approx(wanted["front"]["hypervolume"], rel=1e-9)


def test_every_kind_of_study_is_there() -> None:
    kinds = {"plain", "raced", "constrained", "lora_pool", "evo_merging", "map", "cma_es", "dtype", "asked"}
    assert set(CASES) == kinds


@pytest.mark.cases(3)
@pytest.mark.parametrize("case", RUN)
def test_running_the_unchanged_file_goes_on_to_the_same_end(old: Path, case: str) -> None:
    assert_as_expected(mf.run(old / case / "study.yaml"), case)


@pytest.mark.cases(2)
@pytest.mark.parametrize("case", RUN)
def test_resume_needs_name_and_storage_alone(old: Path, case: str) -> None:
    study = mf.resume(case, storage=url(old / case), evaluations=expected(case)["budget"])
    assert_as_expected(study, case)


def test_a_raced_study_goes_on_with_the_answers_that_are_there_and_says_so(old: Path) -> None:
    """Its scores are estimates, which are this version's; what candidates have answered and were told stays."""
    wanted, path = expected("raced"), old / "raced" / "study.yaml"
    notes = [note for note in check_study(path).notes if "racing has changed" in note]
    assert len(notes) == 1 and "it goes on with the answers that are there" in notes[0]
    study = mf.run(path)
    trials = study.optuna.get_trials(deepcopy=False)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * wanted["budget"]
    for trial, entry in list(zip(trials, wanted["trials"], strict=True))[: wanted["stopped_after"]]:
        assert trial.params == pytest.approx(entry["params"], rel=1e-9, abs=1e-9)
        assert trial.values == pytest.approx(entry["values"], rel=1e-9, abs=1e-9)
    items = study.ledger.evaluations(items=True)
    answered = [set(items[str(trial.user_attrs[RECIPE])].items["writing"].ids) for trial in trials]
    core = set.intersection(*answered[5 : wanted["stopped_after"]])
    assert all(len(core & own) >= 10 for own in answered), "a quarter of what is asked, of the old core of 16"


@pytest.mark.parametrize("case", ["plain", "map"])
def test_a_worker_finishes_an_old_study(old: Path, case: str) -> None:
    from mergefront.storage.studies import update

    study = mf.load_study(case, storage=url(old / case))
    update(study.database, study.record, evaluations=expected(case)["budget"])
    assert_as_expected(work(case, storage=url(old / case)), case)


def test_a_trial_that_was_handed_out_can_be_told(old: Path) -> None:
    number, scores = expected("asked")["asked"]["trial"], expected("asked")["told"]
    study = mf.load_study("asked", storage=url(old / "asked"))
    study.tell(number, scores)
    assert study.optuna.get_trials(deepcopy=False)[number].values == list(scores.values())
    assert_as_expected(mf.run(old / "asked" / "study.yaml"), "asked")


def test_defaults_that_an_old_study_did_not_store_are_those_of_its_day(old: Path) -> None:
    """When a default changes, a running study must not change its meaning."""
    stored = mf.load_study("plain", storage=url(old / "plain")).definition
    assert "delimiter" not in (old / "plain" / "study.yaml").read_text()
    assert stored.evaluator.tasks["writing"]["delimiter"] == " "
    assert stored.evaluator.tasks["writing"]["max_new_tokens"] == 2, "what was written stays"


def test_a_copy_evaluates_its_own_files_and_not_the_originals(old: Path, tmp_path: Path) -> None:
    """The function of the folder that was begun in would be evaluated in silence otherwise."""
    study = mf.load_study("constrained", storage=url(old / "constrained"))
    assert study.root == (old / "constrained").resolve()
    mf.run(old / "constrained" / "study.yaml", evaluations=11)
    copied = Path(shutil.copytree(old / "constrained", tmp_path / "copied"))
    shutil.rmtree(old / "constrained")
    again = mf.load_study("constrained", storage=url(copied))
    assert again.root == copied.resolve()
    assert mf.resume(again, evaluations=12).finished_count() == 12


def test_a_folder_that_is_gone_has_a_remedy(old: Path, tmp_path: Path) -> None:
    (old / "plain" / "mergefront.db").rename(tmp_path / "alone.db")
    arguments = ["resume", "plain", "--storage", str(tmp_path / "alone.db"), "--evaluations", "11"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2 and "--root" in result.stderr
    result = CliRunner().invoke(cli, [*arguments, "--root", str(old / "plain")])
    assert result.exit_code == 0, result.output


def test_an_unchanged_file_is_no_change_and_a_changed_one_is_shown(old: Path) -> None:
    path = old / "plain" / "study.yaml"
    assert check_study(path).problems == []
    path.write_text(path.read_text().replace("max_new_tokens: 2", "max_new_tokens: 3"))
    (problem,) = check_study(path).problems
    assert "evaluator.tasks.writing.max_new_tokens: was 2, is now 3" in problem


def test_a_study_that_begins_now_stores_every_default(old: Path) -> None:
    """What "auto" and an absent key mean must not depend on the version, or the machine, that goes on."""
    path = old / "plain" / "study.yaml"
    path.write_text(path.read_text().replace("study: plain", "study: new"))
    stored = mf.run(path, evaluations=1).record.definition
    assert stored["evaluator"]["backend"] == {"dtype": "float32", "compat": None, "task_vectors": "exact"}
    writing = stored["evaluator"]["tasks"]["writing"]
    assert (writing["delimiter"], writing["stop"], writing["report_fraction"]) == (None, ["\n"], 0.5)
    assert stored["sampler"]["options"]["budget"] == "fast"
    assert mf.run(path, evaluations=2).finished_count() == 2, "the unchanged file continues"
