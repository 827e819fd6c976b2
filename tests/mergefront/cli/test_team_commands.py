"""Many processes, outside harnesses and a study's life, from the command line."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli

SCORER = "def score(recipe):\n    return {'maths': recipe.params['weight[maths]'], 'french': 0.5}\n"


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """A study "skills" of 8 evaluations with 2 done."""
    (tmp_path / "team_scorer.py").write_text(SCORER)
    study = {
        "study": "skills",
        "merge": {"method": "ties", "models": ["maths", "french"], "space": {"weight": [0, 1]}},
        "backend": {"type": "function", "call": "team_scorer:score"},
        "objectives": ["maths", "french"],
        "search": {"sampler": "random", "evaluations": 2},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    made = mf.run(path)
    from mergefront.storage.studies import update

    update(made.database, made.record, evaluations=8)
    return made.database.url


def test_a_shell_script_can_drive_a_study(storage: str) -> None:
    asked = call("ask", "skills", "--storage", storage)
    first, _, config = asked.stdout.partition("\n")
    assert first == "# trial 2 (expert french)"
    assert mf.Recipe.from_mergekit(config).params["weight[french]"] == 1.0
    told = call("tell", "skills", 2, "maths=0.1", "french=0.9", "--standard-error", "maths=0.05", "--storage", storage)
    assert told.exit_code == 0
    assert mf.load_study("skills", storage=storage).best("french").number == 2
    asked_json = json.loads(call("ask", "skills", "--json", "--storage", storage).stdout)
    assert asked_json["trial"] == 3
    assert call("tell", "skills", 3, "--failed", "no disk", "--storage", storage).exit_code == 0
    assert mf.load_study("skills", storage=storage).failures()[0].reason == "reported: no disk"


@pytest.mark.parametrize(
    "arguments",
    [
        ("tell", "skills", 2),
        ("tell", "skills", 2, "maths"),
        ("tell", "skills", 2, "maths=x"),
        ("tell", "skills", 2, "maths=1", "maths=2"),
        ("tell", "skills", -1, "maths=1"),
        ("tell", "skills", 77, "maths=1"),
        ("tell", "skills", 2, "maths=1", "--failed", "both"),
        ("ask", "skils"),
        ("ask", "skills", "--lease", "-1"),
        ("worker", "skils"),
        ("copy", "skills"),
        ("rename", "skills", "skills"),
        ("delete", "skils", "--yes"),
    ],
)
def test_wrong_calls_exit_with_2_and_one_message(storage: str, arguments: tuple[object, ...]) -> None:
    result = call(*arguments, "--storage", storage)
    assert result.exit_code == 2
    assert result.stderr and "Traceback" not in result.stderr
    assert mf.load_study("skills", storage=storage).finished_count() == 2


def test_a_worker_spends_the_rest_of_the_budget(storage: str) -> None:
    assert call("worker", "skills", "--storage", storage).exit_code == 0
    assert mf.load_study("skills", storage=storage).finished_count() == 8


def test_copy_to_a_portable_file_rename_and_delete(storage: str, tmp_path: Path) -> None:
    portable = f"sqlite:///{tmp_path}/portable.db"
    assert call("copy", "skills", "--to", portable, "--storage", storage).exit_code == 0
    assert call("rename", "skills", "kept", "--storage", portable).exit_code == 0
    assert mf.load_study("kept", storage=portable).finished_count() == 2
    assert call("delete", "skills", "--storage", storage, stdin="n\n").exit_code == 130
    assert mf.load_study("skills", storage=storage).finished_count() == 2
    assert call("delete", "skills", "--storage", storage, stdin="y\n").exit_code == 0
    assert "no study" in call("status", "skills", "--storage", storage).stderr


def test_somebody_elses_database_gets_no_tables_from_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE letters (text TEXT)")
    result = call("studies", "--storage", f"sqlite:///{path}")
    assert result.exit_code == 2
    assert "holds no mergefront studies" in result.stderr
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("letters",)]


def test_when_a_command_ends_the_database_file_alone_holds_everything(tmp_path: Path, storage: str) -> None:
    """Who copies study.db, and not the files that SQLite puts beside it, must not lose a finished search."""
    commands: list[tuple[object, ...]] = [
        ("ask", "skills"),
        ("tell", "skills", 2, "maths=0.1", "french=0.9"),
        ("ask", "skills"),
        ("tell", "skills", 3, "--failed", "no disk"),
        ("worker", "skills"),
        ("copy", "skills", "again"),
        ("rename", "again", "other"),
        ("delete", "skills", "--yes"),
    ]
    path = tmp_path / "mergefront.db"
    seen = []
    for number, command in enumerate(commands):
        assert call(*command, "--storage", storage).exit_code == 0
        alone = tmp_path / f"alone-{number}.db"
        alone.write_bytes(path.read_bytes())
        with sqlite3.connect(alone) as connection:
            counted = "SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'FAIL')"
            seen.append((connection.execute(counted).fetchone()[0], _studies(connection)))
    one, two, last = ["skills"], ["again", "skills"], ["other"]
    assert seen == [
        (2, one), (3, one), (3, one), (4, one), (8, one), (16, two), (16, ["other", "skills"]), (8, last),
    ]  # fmt: skip


def _studies(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM mergefront_studies ORDER BY name")]
