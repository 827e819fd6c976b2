"""Old tables are brought up to date with nothing lost and a copy put aside; newer ones are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_study import NAME, small_study
from sqlalchemy import inspect, text

import mergefront as mf
from mergefront.storage import migrations, schema
from mergefront.storage.database import Database, sqlite_path


def as_version_1(url: str) -> None:
    """The tables as version 1 had them."""
    database = Database(url)
    with database.transaction() as connection:
        for index in schema.claims.indexes:
            index.drop(connection)
        connection.execute(text("ALTER TABLE mergefront_claims DROP COLUMN started"))
        connection.execute(schema.schema.update().values(version=1))
    database.close()


def upgraded(url: str) -> str:
    database = Database(url, may_upgrade=True)
    assert database.upgraded is not None
    with database.transaction() as connection:
        columns = {column["name"] for column in inspect(connection).get_columns("mergefront_claims")}
        assert "started" in columns
    database.close()
    return database.upgraded


def test_every_older_version_has_a_step() -> None:
    assert sorted(migrations.STEPS) == list(range(1, schema.VERSION))


def test_a_study_of_an_older_version_goes_on_where_it_was(database_url: str) -> None:
    before = small_study(database_url)
    front = before.to_json()
    before.database.close()
    as_version_1(database_url)
    upgraded(database_url)
    assert mf.load_study(NAME, storage=database_url).to_json() == front
    assert small_study(database_url, 9).finished_count() == 9


def test_the_copy_of_an_sqlite_file_is_a_database_of_the_old_version(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    small_study(url).database.close()
    for expected in ("study.db.version1", "study.db.version1.2"):
        as_version_1(url)
        kept = upgraded(url)
        assert kept == str(tmp_path / expected)
        assert "started" not in Path(kept).read_bytes().decode("latin-1").split("mergefront_claims")[1][:600]
    again = Database(f"sqlite:///{kept}")
    assert again.upgraded == f"{kept}.version1"


def test_a_server_is_upgraded_on_request_only(postgres_url: str) -> None:
    small_study(postgres_url).database.close()
    as_version_1(postgres_url)
    with pytest.raises(mf.UserError, match="mergefront upgrade --storage"):
        mf.load_study(NAME, storage=postgres_url)
    assert upgraded(postgres_url) == "tables mergefront_*_version1"
    assert mf.load_study(NAME, storage=postgres_url).finished_count() == 6
    as_version_1(postgres_url)
    with pytest.raises(mf.UserError, match="in the way"):
        upgraded(postgres_url)


def test_tables_of_a_newer_version_are_refused_and_not_touched(database_url: str) -> None:
    small_study(database_url).database.close()
    database = Database(database_url)
    with database.transaction() as connection:
        connection.execute(schema.schema.update().values(version=schema.VERSION + 1))
    database.close()
    path = sqlite_path(database_url)
    before = None if path is None else path.read_bytes()
    with pytest.raises(mf.UserError, match="upgrade mergefront to open it"):
        Database(database_url, may_upgrade=True)
    assert path is None or path.read_bytes() == before
