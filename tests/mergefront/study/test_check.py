"""Bad input gets all its problems named at once, exit code 2, and nothing is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import mergefront as mf
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.running.worker import work
from mergefront.study.check import check_study

GOOD = """
study: skills
merge: {method: ties, models: [maths, french], space: {weight: [0, 1], density: [0.1, 1]}}
backend: {type: function, call: "scorer:score"}
objectives: [maths, {name: french, direction: minimize}]
search: {sampler: random, evaluations: 8}
"""
SCORER = """
def score(recipe):
    return {"maths": sum(recipe.params.values()), "french": 1.0}
"""


def study_in(folder: Path, text: str = GOOD) -> Path:
    (folder / "scorer.py").write_text(SCORER)
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_a_sound_study_has_no_problems_and_runs(tmp_path: Path) -> None:
    path = study_in(tmp_path)
    report = check_study(path)
    assert report.problems == []
    assert not (tmp_path / "mergefront.db").exists(), "check writes nothing"
    study = mf.run(path)
    assert study.finished_count() == 8
    assert (tmp_path / "mergefront.db").exists(), "paths are relative to the study file"


@pytest.mark.parametrize(
    ("written", "name"), [("'maths '", "maths "), ("' maths'", " maths"), ("'maths,1'", "maths,1")]
)
def test_a_name_that_run_would_refuse_is_refused_by_check_and_leaves_no_study(
    tmp_path: Path, written: str, name: str
) -> None:
    path = study_in(tmp_path, GOOD.replace("models: [maths,", f"models: [{written},"))
    assert [problem for problem in check_study(path).problems if f"{name!r} is not a usable name" in problem]
    with pytest.raises(StudyFileError):
        mf.run(path)
    assert not (tmp_path / "mergefront.db").exists()


def test_misspelt_keys_are_named_beside_other_faults_and_cause_no_others(tmp_path: Path) -> None:
    text = GOOD.replace("merge:", "mrege:").replace("objectives:", "objctives:").replace("direction:", "dir:")
    assert check_study(study_in(tmp_path, text)).problems == [
        "unknown key 'mrege' (did you mean 'merge'?)",
        "unknown key 'objctives' (did you mean 'objectives'?)",
        "objectives[1]: unknown key 'dir' (known: direction, name, range)",
    ]
    text = GOOD.replace("space:", "spaec:").replace("scorer:score", "scorer:scoer").replace("random", "randmo")
    problems = check_study(study_in(tmp_path, text)).problems
    assert len(problems) == 3 and problems[0] == "merge: unknown key 'spaec' (did you mean 'space'?)"
    assert "'scoer'" in problems[1] and "'randmo'" in problems[2]


def test_best_needs_no_name_where_there_is_one_objective(tmp_path: Path) -> None:
    study = mf.run(study_in(tmp_path, GOOD.replace(", {name: french, direction: minimize}", "")))
    assert study.best() == study.best("maths")
    with pytest.raises(UserError, match="give best\\(\\) one of maths, french"):
        mf.run(study_in(tmp_path, GOOD.replace("study: skills", "study: both"))).best()


def test_every_problem_is_listed_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    path = study_in(
        tmp_path,
        """
study: skills
merge: {method: tiez, models: [maths], space: {weight: [0, 1]}}
backend: {type: function, call: "scorer:scoer"}
objectives: [maths, maths]
search: {sampler: mmmo, evaluations: 8, batch: 0}
""",
    )
    with pytest.raises(StudyFileError) as raised:
        mf.run(path)
    message = str(raised.value)
    for words in (
        "'tiez'",
        "did you mean 'ties'",
        "'scoer'",
        "did you mean 'score'",
        "named twice",
        "'mmmo'",
        "'mm-mo'",
    ):
        assert words in message
    assert {file.name for file in tmp_path.iterdir()} - {"__pycache__"} == {"scorer.py", "study.yaml"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("study: skills", "stduy: skills"), ["stduy", "did you mean 'study'"]),
        (("evaluations: 8", "evaluations: 0"), ["search.evaluations is 0", "a whole number in [1, "]),
        (("evaluations: 8", "evaluations: many"), ["search.evaluations", "'many'"]),
        (("objectives: [maths, {name: french, direction: minimize}]", "objectives: []"), ["objectives"]),
        (("direction: minimize", "direction: down"), ["objectives[1].direction", "'down'"]),
        (("weight: [0, 1]", "weight: [1, 0]"), ["merge.space: weight", "low end"]),
        (("weight: [0, 1]", "weight: {3: 4}"), ["weight: unknown key 3 (known: "]),
        (("weight: [0, 1]", "weigth: [0, 1]"), ["'weigth'", "did you mean 'weight'"]),
        (("density: [0.1, 1]", "density: [0.1, 1.5]"), ["density", "1.5", "[0, 1]"]),
        (("method: ties", "method: ties, metod: x"), ["merge: unknown key 'metod'", "did you mean 'method'"]),
        (("type: function", "type: functoin"), ["backend", "did you mean 'function'"]),
        (("scorer:score", "scorer"), ["package.module:name"]),
        (("scorer:score", "nowhere:score"), ["no module 'nowhere'"]),
        (("search: {sampler: random", "search: {sampler: cma-es"), ["'cma-es'", "one objective", "2 are asked for"]),
        (("sampler: random", "sampler: mm-mo, bacth: 3"), ["'bacth'", "did you mean 'batch'"]),
        (("study: skills", "study: skills\nstudy: again"), ["line 3", "'study' is here twice"]),
        (("study: skills", "study: &a skills\nstorage: *a"), ["line 3", "aliases"]),
        (("study: skills", "study: [skills"), ["line", "not valid YAML"]),
        (("study: skills", "study: skills\nstorage: nowhere"), ["'nowhere'", "database URL"]),
        (("study: skills", "study: skills\nstorage: sqlite:///no/such/x.db"), ["no/such", "does not exist"]),
        (("search: {", "tasks: {maths: {type: jsonl}}\nsearch: {"), ["tasks", "function scores by itself"]),
        (("density: [0.1, 1]", "granularity: {blocks: 4}"), ["granularity", "base model"]),
        (('call: "scorer', 'function: "scorer'), ["backend: unknown key 'function'", "known: call, type"]),
        (
            ("study: skills", "study: skills\nracing: 0.2"),
            ["racing is 0.2", "true or false or a mapping with the keys"],
        ),
        (("study: skills", "study: skills\nracing: {items: .nan}"), ["racing.items is nan", "a number in (0, 1]"]),
    ],
)
def test_each_mistake_names_the_key_what_is_wrong_and_what_would_be_right(
    tmp_path: Path, change: tuple[str, str], words: list[str]
) -> None:
    assert change[0] in GOOD
    report = check_study(study_in(tmp_path, GOOD.replace(*change)))
    text = "\n".join(report.problems)
    for word in words:
        assert word in text
    assert report.definition is None
    assert not (tmp_path / "mergefront.db").exists()


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"just words", b"\xff\xfe\x00", b"a: " + b"[" * 5000])
def test_files_that_are_no_study_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    assert len(check_study(path).problems) == 1


def test_a_missing_study_file(tmp_path: Path) -> None:
    assert check_study(tmp_path / "study.yaml").problems == ["there is no such file"]


def test_a_stored_study_of_another_definition_is_a_problem_before_the_run(tmp_path: Path) -> None:
    path = study_in(tmp_path)
    mf.run(path)
    path.write_text(GOOD.replace("weight: [0, 1]", "weight: [0, 0.5]"))
    text = "\n".join(check_study(path).problems)
    assert "space.parameters.weight[1]: was 1, is now 0.5" in text
    path.write_text(GOOD.replace("evaluations: 8", "evaluations: 9"))
    assert mf.run(path).finished_count() == 9, "a larger budget continues the study"


def test_resume_needs_only_name_and_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergefront.running.run import resume

    mf.run(study_in(tmp_path))
    monkeypatch.chdir("/")
    (tmp_path / "study.yaml").unlink()
    study = resume("skills", storage=f"sqlite:///{tmp_path}/mergefront.db", evaluations=10)
    assert study.finished_count() == 10


def test_a_budget_that_no_memory_holds_is_refused_and_a_large_one_is_warned_of(tmp_path: Path) -> None:
    """Every process reads every trial: without a word the machine would be out of memory after days."""
    for budget, words in (
        (8, None),
        (200_000, "200,000 trials of 4 coefficients are"),
        (1_000_000_000, "and this machine has"),
    ):
        report = check_study(study_in(tmp_path, GOOD.replace("evaluations: 8", f"evaluations: {budget}")))
        told = [line for line in [*report.problems, *report.warnings] if "search.evaluations" in line]
        assert [str(words) in line and "warm_start" in line for line in told] == ([] if words is None else [True])
        assert bool(report.problems) is (budget > 1_000_000)


def test_a_budget_is_raised_no_further_than_memory_holds(tmp_path: Path) -> None:
    """In whatever way it is raised; and a machine with little memory does not work on a large study."""
    path, most = study_in(tmp_path), 1_000_000_000
    study = mf.run(path)
    raised: list[Callable[[], object]] = [
        lambda: mf.run(path, evaluations=most),
        lambda: mf.create(path, evaluations=most),
        lambda: mf.resume(study, evaluations=most),
    ]
    for raise_budget in raised:
        with pytest.raises(mf.UserError, match=r"trials of 4 coefficients are .* and this machine has .*warm_start"):
            raise_budget()
    assert study.refresh().record.evaluations == 8
    study.database.write(
        lambda connection: connection.exec_driver_sql(f"UPDATE mergefront_studies SET evaluations = {most}")
    )
    for go_on in (mf.resume, work):
        with pytest.raises(mf.UserError, match="and this machine has"):
            go_on(mf.load_study("skills", storage=study.database.url))


def test_a_database_server_says_how_many_workers_it_takes(tmp_path: Path, database_url: str) -> None:
    study = mf.run(study_in(tmp_path, f"{GOOD}storage: {database_url}"))
    told = [note for note in check_study(tmp_path / "study.yaml").notes if "connections" in note]
    if study.database.engine.dialect.name == "sqlite":
        assert told == []
    else:
        (note,) = told
        assert re.search(r"takes (\d+) connections, those of \d+ workers", note)
