"""A study can be renamed, copied, moved and deleted without losing or leaking a number."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select, text

import mergefront as mf
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.storage import schema
from mergefront.storage.database import Database
from mergefront.storage.transfer import copy, delete, rename

SPACE = mf.MergeSpace(["a", "b"], method="task_arithmetic")


def score(recipe: mf.Recipe) -> Evaluation:
    weight = float(recipe.params["weight[a]"])
    if weight == 1.0:
        raise RuntimeError("this one always fails")
    return Evaluation({"score": weight}, {"score": 0.1}, {"score": ItemScores(("x", "y"), (weight, 0.0))})


def small_study(url: str, name: str = "small", evaluations: int = 7) -> mf.Study:
    return mf.search(
        space=SPACE,
        evaluate=score,
        objectives=["score"],
        sampler="random",
        evaluations=evaluations,
        storage=url,
        name=name,
    )


def content(study: mf.Study) -> object:
    trials = [(t.number, t.state, t.params, t.values, t.user_attrs) for t in study.optuna.get_trials(deepcopy=False)]
    return trials, study.ledger.evaluations(items=True), study.to_json() | {"study": ""}


def test_a_copy_in_another_database_is_the_same_study_and_goes_on(tmp_path: Path, database_url: str) -> None:
    original = small_study(database_url)
    target = Database(f"sqlite:///{tmp_path}/portable.db")
    copy(original.database, "small", target)
    moved = mf.load_study("small", storage=f"sqlite:///{tmp_path}/portable.db")
    assert content(moved) == content(original)
    assert moved.record.uuid != original.record.uuid
    longer = small_study(f"sqlite:///{tmp_path}/portable.db", evaluations=9)
    assert longer.finished_count() == 9
    assert original.finished_count() == 7


def test_a_study_that_is_looked_at_shows_what_others_add_and_a_snapshot_does_not(database_url: str) -> None:
    watched = small_study(database_url)
    snapshot = watched.snapshot()
    for seen in (watched, snapshot):
        assert [candidate.number for candidate in seen.candidates()] == [0, 2, 3, 4, 5, 6]
    small_study(database_url, evaluations=9)
    assert [candidate.number for candidate in watched.candidates()] == [0, 2, 3, 4, 5, 6, 7, 8]
    assert (len(snapshot.candidates()), snapshot.finished_count(), len(snapshot.failures())) == (6, 7, 1)
    candidate = watched.best("score")
    assert candidate.recipe.digest == candidate.digest and score(candidate.recipe).scores == candidate.scores


def test_a_search_outlasts_the_renaming_of_its_study(database_url: str) -> None:
    small_study(database_url)

    def rename_it(outcome: object) -> None:
        rename(Database(database_url), "small", "renamed")

    ended = mf.search(
        space=SPACE,
        evaluate=score,
        objectives=["score"],
        sampler="random",
        evaluations=8,
        storage=database_url,
        name="small",
        on_trial_end=rename_it,
    )
    assert (ended.name, ended.finished_count()) == ("renamed", 8)


def test_rename_keeps_everything_and_refuses_a_taken_name(database_url: str) -> None:
    study = small_study(database_url)
    before = content(study)
    rename(study.database, "small", "grown")
    assert content(mf.load_study("grown", storage=study.database.url)) == before
    small_study(database_url)
    with pytest.raises(mf.UserError, match="exists already"):
        rename(study.database, "small", "grown")
    with pytest.raises(mf.UserError, match="exists already"):
        copy(study.database, "small", study.database, "grown")


def test_deleting_one_study_leaves_no_row_of_it_and_every_row_of_the_others(database_url: str) -> None:
    keep, gone = small_study(database_url, "keep"), small_study(database_url, "gone")
    before = content(keep)
    delete(keep.database, "gone")
    assert content(mf.load_study("keep", storage=keep.database.url)) == before
    with keep.database.transaction() as connection:
        for table in (schema.studies, schema.claims, schema.evaluations):
            rows = select(func.count()).select_from(table).where(table.c.study_id == gone.record.study_id)
            assert connection.execute(rows).scalar() == 0
        assert (
            connection.execute(
                text("SELECT COUNT(*) FROM trials WHERE study_id = :id"), {"id": gone.record.study_id}
            ).scalar()
            == 0
        )
        orphans = text("SELECT COUNT(*) FROM trial_params WHERE trial_id NOT IN (SELECT trial_id FROM trials)")
        assert connection.execute(orphans).scalar() == 0


def test_who_looks_at_a_deleted_study_is_not_shown_another_one_in_its_place(tmp_path: Path) -> None:
    """SQLite gives a new study the number of the one that was deleted last."""
    url = f"sqlite:///{tmp_path}/study.db"
    watched = small_study(url)
    delete(watched.database, "small")
    again = small_study(url, evaluations=8)
    assert again.record.study_id == watched.record.study_id
    with pytest.raises(mf.UserError, match="deleted meanwhile"):
        watched.refresh()
    assert again.refresh().record.evaluations == 8
