"""How many statements a trial costs, each a round trip to the database, and that they fit Optuna's tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from optuna.storages._rdb import models
from sqlalchemy import event

import mergefront as mf
from mergefront.storage.optuna_tables import schema

LOCKS_AND_CLOCK = {"sqlite": 0, "postgresql": 2, "mysql": 3}
"""What an ask costs more on a server: two rows are locked, with the first its clock is read, by MariaDB in two
statements."""


@contextmanager
def statements(study: mf.Study) -> Iterator[list[str]]:
    """The statements while entered, without those that begin SQLite's transactions."""
    made: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            made.append(statement)

    event.listen(study.database.engine, "before_cursor_execute", note)
    try:
        yield made
    finally:
        event.remove(study.database.engine, "before_cursor_execute", note)


@pytest.mark.cases(1)
def test_a_trial_is_asked_and_told_in_few_statements(tmp_path: Path, database_url: str) -> None:
    content = {
        "study": "counted",
        "storage": database_url,
        "merge": {"method": "ties", "models": ["a", "b", "c"], "space": {"weight": [0, 1], "density": [0.1, 1]}},
        "backend": {"type": "external"},
        "objectives": ["maths", "french"],
        "search": {"sampler": "mm-mo", "evaluations": 12},
    }
    path = tmp_path / "counted.yaml"
    path.write_text(json.dumps(content))
    study = mf.create(path)
    for place in range(9):
        with statements(study) as asking:
            asked = study.ask()
        assert asked is not None
        with statements(study) as telling:
            study.tell(asked.trial, {"maths": place / 10, "french": 1 - place / 9})
    assert asked.anchor is None
    assert len(asking) <= 12 + LOCKS_AND_CLOCK[study.database.engine.dialect.name], "\n".join(asking)
    assert len(telling) <= 7, "\n".join(telling)


def test_the_tables_that_are_written_directly_are_optunas() -> None:
    theirs = models.BaseModel.metadata.tables
    for ours in schema._metadata.sorted_tables:
        for column in ours.columns:
            known = theirs[ours.name].columns[column.name]
            assert (repr(column.type), column.nullable, column.primary_key) == (
                repr(known.type),
                known.nullable,
                known.primary_key,
            ), known
