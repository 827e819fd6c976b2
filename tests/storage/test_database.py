"""A database is opened safely, or refused with one clear sentence and left as it was."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.objectives import Objective
from mergefront.storage.database import Database
from mergefront.storage.studies import all_studies, create_or_load, load

if TYPE_CHECKING:
    from mysql_server import MysqlServer


def test_sqlite_is_opened_for_several_processes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/study.db")
    with database.transaction() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA busy_timeout")).scalar() == 60_000


def test_workers_that_start_together_on_a_new_database_all_open_it(database_url: str) -> None:
    """Five machines get the same command at the same moment; none may find the others' half-made tables."""
    together = Barrier(5)

    def start() -> Database:
        together.wait()
        return Database(database_url)

    with ThreadPoolExecutor(5) as pool:
        databases = [future.result() for future in [pool.submit(start) for _ in range(5)]]
    assert [all_studies(database) for database in databases] == [[]] * 5


def test_reading_commands_do_not_create_a_database(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such database"):
        Database(f"sqlite:///{tmp_path}/typo.db", create=False)
    assert list(tmp_path.iterdir()) == []


ODD_FOLDERS = ("better?first", "better?second", "my%20runs", "run #1", "{SCHEMA_VERSION}", "a?b=c")


@pytest.mark.parametrize("form", ["{}", "sqlite:///{}"])
def test_a_file_lies_in_the_folder_that_was_named_whatever_its_name(tmp_path: Path, form: str) -> None:
    """Two folders never share one database, and a URL means the folder that is written in it."""
    paths = [tmp_path / folder / "study.db" for folder in ODD_FOLDERS]
    for path in paths:
        path.parent.mkdir()
        database = Database(form.format(path))
        create_or_load(database, path.parent.name, {}, [Objective("one")], root=".", evaluations=1, versions={})
        database.close()
    for path in paths:
        assert [record.name for record in all_studies(Database(form.format(path), create=False))] == [path.parent.name]
    assert {path.name for path in tmp_path.iterdir()} == set(ODD_FOLDERS)


def test_an_escaped_url_opens_the_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "my runs").mkdir()
    Database(f"sqlite:///{tmp_path}/my%20runs/study.db").close()
    assert (tmp_path / "my runs" / "study.db").is_file()


def test_newer_tables_are_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    database = Database(f"sqlite:///{path}")
    with database.transaction() as connection:
        connection.execute(text("UPDATE mergefront_schema SET version = 99"))
    database.close()
    before = path.read_bytes()
    with pytest.raises(UserError, match="version 99"):
        Database(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not a url", "no database URL"),
        ("sqlite:////no/such/folder/x.db", "does not exist"),
        ("foodb://x/y", "foodb"),
        ("sqlite:///:memory:", "kept in memory.*name a file"),
        ("sqlite://", "no SQLite URL"),
        ("sqlite:///study.db?mode=memory&uri=true", "no options"),
        ("oracle://me@db/x", r"oracle is not supported; use SQLite .* PostgreSQL .* MariaDB"),
    ],
)
def test_unusable_urls_are_named(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Database(url)


def test_a_database_that_mixes_up_names_is_refused(mysql: MysqlServer) -> None:
    url = mysql.new_database(collation="utf8mb4_general_ci")
    with pytest.raises(UserError, match=r"CREATE DATABASE test_.* COLLATE utf8mb4_bin"):
        Database(url)


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(UserError, match=r'pip install "mergefront\[mysql\]"'):
        Database("mysql+pymysql://me@db/merges")


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("these are my notes, not a database")
    with pytest.raises(UserError, match="not an SQLite database"):
        Database(str(path))
    assert path.read_text() == "these are my notes, not a database"


def test_password_never_shows_in_an_error() -> None:
    with pytest.raises(UserError) as raised:
        Database("foodb://me:secret@host/db")
    assert "secret" not in str(raised.value)


def test_a_study_is_made_once_and_found_again(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/study.db")
    first = create_or_load(database, "skills", {"seed": 0}, [Objective("a")], root=".", evaluations=5, versions={})
    again = create_or_load(database, "skills", {"seed": 1}, [Objective("a")], root=".", evaluations=9, versions={})
    assert again == first, "what a study was started with stays"


def test_unknown_study_gets_the_nearest_name(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/study.db")
    create_or_load(database, "skills", {}, [Objective("a")], root=".", evaluations=5, versions={})
    with pytest.raises(UserError, match="did you mean 'skills'"):
        load(database, "skils")


def test_an_optuna_study_of_someone_else_is_not_taken_over(tmp_path: Path) -> None:
    import optuna

    database = Database(f"sqlite:///{tmp_path}/study.db")
    foreign = optuna.create_study(study_name="mine", storage=database.optuna_storage, direction="maximize")
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="not made by mergefront"):
        create_or_load(database, "mine", {}, [Objective("a")], root=".", evaluations=5, versions={})
