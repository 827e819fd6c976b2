"""What a study was started with is what it goes on with, wherever its folder lies and whatever defaults have become."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

import mergefront as mf
from mergefront.optimizer.errors import StudyFileError, UserError
from mergefront.storage.database import Database
from mergefront.storage.schema import studies
from mergefront.study.check import check_study
from mergefront.study.rules import SCORING

STUDY = """
study: skills
merge: {method: linear, models: [maths, french], space: {weight: [0, 1]}}
backend: {type: function, call: "scores_of_continuation:score"}
objectives: [a]
search: {sampler: sobol, evaluations: 6}
"""
SCORES = "def score(recipe):\n    return {'a': sum(recipe.params.values())}\n"


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "scores_of_continuation.py").write_text(SCORES)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def storage(study_file: Path) -> str:
    return f"sqlite:///{study_file.parent}/mergefront.db"


def stored(study_file: Path) -> dict[str, Any]:
    database = Database(storage(study_file), create=False)
    with database.reading() as connection:
        return dict(connection.execute(select(studies)).one()._mapping)


def change(study_file: Path, **values: Any) -> None:
    """Write into the stored row, as another version would have."""
    database = Database(storage(study_file), create=False)
    with database.transaction() as connection:
        connection.execute(update(studies).values(**values))
    database.close()


def test_every_default_is_stored_and_so_is_the_version_of_the_rules(study_file: Path) -> None:
    mf.run(study_file)
    definition = stored(study_file)["definition"]
    assert definition["scoring"] == SCORING
    assert definition["space"]["ranges"]["weight[maths]"] == {"low": 0.0, "high": 1.0, "log": False, "step": None}


def test_a_default_that_has_changed_since_does_not_change_the_study(study_file: Path) -> None:
    """The stored ranges are what an earlier version's defaults made of the same file."""
    mf.run(study_file)
    definition = stored(study_file)["definition"]
    definition["space"]["ranges"]["weight[maths]"]["high"] = 0.5
    change(study_file, definition=definition)
    report = check_study(study_file)
    assert report.problems == []
    assert any("space.ranges" in note and "as the study was started" in note for note in report.notes)
    study = mf.run(study_file, evaluations=20)
    later = [candidate for candidate in study.candidates() if candidate.anchor is None and candidate.number >= 6]
    assert later and all(candidate.params["weight[maths]"] <= 0.5 for candidate in later)


def test_what_the_file_writes_must_agree_with_what_is_stored(study_file: Path) -> None:
    mf.run(study_file)
    study_file.write_text(STUDY.replace("sampler: sobol", "sampler: random"))
    with pytest.raises(StudyFileError, match=r'sampler\.name: was "sobol", is now "random"'):
        mf.run(study_file)


def test_the_budget_is_what_was_last_asked_for(study_file: Path) -> None:
    study_file.write_text(STUDY.replace(", evaluations: 6", ""))
    assert mf.run(study_file, evaluations=7).record.evaluations == 7
    assert mf.run(study_file).finished_count() == 7, "a file that names no budget leaves it as it is"


def test_a_folder_that_was_moved_goes_on_where_it_lies_now(study_file: Path, tmp_path: Path) -> None:
    mf.run(study_file)
    moved = study_file.parent.rename(tmp_path / "moved")
    study = mf.resume("skills", storage=f"sqlite:///{moved}/mergefront.db", evaluations=8)
    assert study.finished_count() == 8 and study.root == moved.resolve()
    assert not Path(study.record.root).is_absolute()


def test_a_copy_uses_its_own_code(study_file: Path, tmp_path: Path) -> None:
    mf.run(study_file)
    copied = Path(shutil.copytree(study_file.parent, tmp_path / "copied"))
    assert mf.load_study("skills", storage=f"sqlite:///{copied}/mergefront.db").root == copied.resolve()


def test_a_copy_in_the_same_process_is_scored_by_its_own_code(study_file: Path, tmp_path: Path) -> None:
    """A notebook that goes on with a copy would be told the original's scores otherwise."""
    mf.run(study_file)
    copied = Path(shutil.copytree(study_file.parent, tmp_path / "copied"))
    (copied / "scores_of_continuation.py").write_text("def score(recipe):\n    return {'a': -7.0}\n")
    study = mf.resume("skills", storage=f"sqlite:///{copied}/mergefront.db", evaluations=7)
    assert study.candidates()[-1].scores == {"a": -7.0}


def test_root_says_where_the_files_are(study_file: Path, tmp_path: Path) -> None:
    mf.run(study_file)
    folder = tmp_path / "database"
    shutil.copytree(study_file.parent, folder, ignore=shutil.ignore_patterns("*.py", "*.yaml"))
    alone = folder / "mergefront.db"
    with pytest.raises(UserError, match="no such folder"):
        mf.resume("skills", storage=f"sqlite:///{alone}", root=tmp_path / "nowhere", evaluations=7)
    study = mf.resume("skills", storage=f"sqlite:///{alone}", root=study_file.parent, evaluations=7)
    assert study.finished_count() == 7


def test_a_study_copied_to_another_file_still_finds_its_files(study_file: Path, tmp_path: Path) -> None:
    study = mf.run(study_file)
    target = Database(f"sqlite:///{tmp_path}/portable.db")
    assert study.copy(target).root == study_file.parent.resolve()


def test_rules_of_scoring_that_this_version_does_not_know_are_refused(study_file: Path) -> None:
    mf.run(study_file)
    change(study_file, definition={**stored(study_file)["definition"], "scoring": SCORING + 1})
    for go_on in (
        lambda: mf.run(study_file, evaluations=7),
        lambda: mf.resume("skills", storage=storage(study_file), evaluations=7),
    ):
        with pytest.raises(UserError, match="upgrade mergefront"):
            go_on()


def test_a_study_that_a_change_of_scoring_touches_is_refused_with_the_reason_and_others_go_on(
    study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergefront.study import rules

    mf.run(study_file)
    change(study_file, definition={**stored(study_file)["definition"], "scoring": SCORING - 1})
    for touched in (False, True):
        row = rules.ScoringChange(SCORING, "answers are weighed", lambda stored, root, touched=touched: touched)  # type: ignore[misc]
        monkeypatch.setattr(rules, "SCORING_CHANGES", (row,))
        for number, go_on in enumerate(
            (mf.run, lambda _, evaluations: mf.resume("skills", storage=storage(study_file), evaluations=evaluations))
        ):
            budget = 7 + number
            if touched:
                with pytest.raises(UserError, match="answers are weighed; go on with the mergefront that began it"):
                    go_on(study_file, evaluations=budget + 2)
            else:
                assert go_on(study_file, evaluations=budget).finished_count() == budget


def test_a_newer_sampler_goes_on_and_says_so(study_file: Path) -> None:
    mf.run(study_file)
    definition = stored(study_file)["definition"]
    definition["sampler"]["version"] = 9
    change(study_file, definition=definition)
    report = check_study(study_file)
    assert report.problems == []
    assert sum("sampler sobol has changed since" in note for note in report.notes) == 1


@pytest.mark.parametrize(
    "experts,version,options,is_told",
    [
        (16, 3, {"fisher_screen": "off", "unexplained": "roughness"}, False),
        (16, 2, {"fisher_screen": "off", "unexplained": "roughness"}, False),
        (16, 1, {"fisher_screen": "off", "unexplained": "roughness"}, True),
        (17, 3, {"fisher_screen": "off", "unexplained": "roughness"}, True),
        (17, 4, {"fisher_screen": "off", "unexplained": "roughness"}, False),
        (16, 4, {"unexplained": "roughness"}, True),
        (16, 4, {"variant": "paper"}, False),
        (16, 5, {"unexplained": "roughness"}, False),
        (16, 5, {"unexplained": "roughness", "budget": "quality"}, True),
        (16, 5, {"unexplained": "noise"}, True),
        (16, 5, {"unexplained": "noise", "budget": "botorch"}, False),
        (16, 6, {"unexplained": "noise"}, False),
        (16, 5, {}, False),
    ],
)
def test_a_change_of_a_sampler_is_told_to_the_studies_that_it_touches(
    tmp_path: Path, experts: int, version: int, options: dict[str, str], is_told: bool
) -> None:
    """mm-mo climbs by exact slopes above 32 coefficients only, its default variant had a Fisher screen until 5, and
    climbs on a part of the samples if there are many: others would look for a change that is none."""
    from mergefront.optimizer.recipes.space import MergeSpace
    from mergefront.study.rules import changes_since

    parameters = {"weight": [0, 1], "density": [0.1, 1]}
    space = MergeSpace([f"e{i}" for i in range(experts)], method="ties", base_model="b", parameters=parameters)
    sampler = {"name": "mm-mo", "version": version, "options": options}
    definition = {"scoring": SCORING, "sampler": sampler, "objectives": [{"name": "x"}], "space": space.to_json()}
    lines = changes_since("s", definition, tmp_path)
    assert ["sampler mm-mo has changed since" in line for line in lines] == [True] * is_told


def test_options_that_came_later_are_those_of_the_day_where_a_study_was_begun_without(study_file: Path) -> None:
    """Also where no trial had finished yet, so that nothing but the definition tells the day."""
    study_file.write_text(STUDY.replace("sampler: sobol", "sampler: mm-mo"))
    mf.run(study_file)
    definition = stored(study_file)["definition"]
    of_the_day = {"unexplained": "roughness", "trend": "none", "item_margins": False}
    of_today = {name: definition["sampler"]["options"].pop(name) for name in of_the_day}
    assert of_today == {"unexplained": "noise", "trend": "auto", "item_margins": True}
    change(study_file, definition=definition)
    begun = mf.load_study("skills", storage=storage(study_file)).definition.sampler_options
    assert {name: begun[name] for name in of_the_day} == of_the_day
    assert mf.resume("skills", storage=storage(study_file), evaluations=8).finished_count() == 8


def test_scores_of_other_rules_are_no_warm_start_but_their_recipes_are(study_file: Path) -> None:
    from mergefront.study.warm_start import read_warm_start

    mf.run(study_file)
    study_file.write_text(STUDY.replace("study: skills", "study: again\nwarm_start: [{study: skills}]"))
    definition = check_study(study_file).definition_or_raise()
    assert len(read_warm_start(definition).known) > 0
    change(study_file, definition={**stored(study_file)["definition"], "scoring": SCORING - 1})
    found = read_warm_start(definition)
    assert found.known == () and len(found.seeds) > 0


def test_mf_run_refuses_what_it_cannot_honour_and_search_takes_no_file(study_file: Path) -> None:
    with pytest.raises(TypeError):
        mf.run(study_file, sampler="random")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        mf.search(study_file, sampler="random", seed=3)  # type: ignore[call-arg,misc]
    assert not (study_file.parent / "mergefront.db").exists()


def test_stored_definitions_read_back_as_they_were(study_file: Path) -> None:
    study = mf.run(study_file)
    assert json.loads(json.dumps(study.definition.to_json())) == stored(study_file)["definition"]
