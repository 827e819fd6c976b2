"""Optuna's tables, which are read and written here without Optuna, are those of the installed version."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import Table, create_engine, inspect, select
from sqlalchemy.engine import Engine, make_url

from mergefront.storage.optuna_tables import schema
from mergefront.storage.optuna_tables.schema import OPTUNA, REVISION, REVISIONS
from mergefront.storage.optuna_tables.tables import create_tables

REMEDY = (
    f"Optuna {optuna.__version__} has other tables than {OPTUNA}, which storage/optuna_tables reads and writes: "
    "compare its modules with Optuna's _rdb, then raise OPTUNA, REVISION and the pin in pyproject.toml together"
)


def test_tables_and_columns_are_those_of_the_installed_optuna() -> None:
    theirs = models.BaseModel.metadata.tables
    ours: list[Table] = list(schema.TRIALS.metadata.tables.values())
    assert len(ours) == 10
    for table in ours:
        assert table.name in theirs, f"{REMEDY}; it has no {table.name}"
        for column in table.columns:
            known = theirs[table.name].columns.get(column.name)
            assert known is not None, f"{REMEDY}; it has no {table.name}.{column.name}"
            described = f"{REMEDY}; {table.name}.{column.name} is {known.type!r}"
            assert known.type.__class__.__name__ in (column.type.__class__.__name__, "Enum"), described
            assert getattr(known.type, "enums", None) == getattr(column.type, "enums", None), described


def test_a_new_database_has_the_revision_that_is_known(tmp_path: Path) -> None:
    with RDBStorage(f"sqlite:///{tmp_path}/optuna.db").engine.connect() as connection:
        stored = connection.execute(select(REVISIONS.c.version_num)).scalars().all()
    assert stored == [REVISION], REMEDY
    assert optuna.__version__.rpartition(".")[0] == OPTUNA.rpartition(".")[0], REMEDY


def _described(engine: Engine) -> dict[str, Any]:
    """Everything that a database says of Optuna's tables, and the versions that stand in them."""
    inspector = inspect(engine)
    found: dict[str, Any] = {}
    for name in [*models.BaseModel.metadata.tables, REVISIONS.name]:
        columns = [{**column, "type": repr(column["type"])} for column in inspector.get_columns(name)]
        keys = [*inspector.get_indexes(name), *inspector.get_unique_constraints(name)]
        references = sorted(map(repr, inspector.get_foreign_keys(name)))
        found[name] = (columns, inspector.get_pk_constraint(name), references, sorted(map(repr, keys)))
    with engine.connect() as connection:
        found["version"] = connection.execute(select(models.VersionInfoModel.__table__)).all()
        found["revision"] = connection.execute(select(REVISIONS)).all()
    return found


def test_a_database_is_made_as_optuna_makes_it(
    request: pytest.FixtureRequest, database_url: str, tmp_path: Path
) -> None:
    """Optuna, its dashboard and its later versions go on with what mergefront made."""
    kind = make_url(database_url).get_backend_name()
    theirs = f"sqlite:///{tmp_path}/optuna.db"
    if kind != "sqlite":
        theirs = request.getfixturevalue("postgres" if kind == "postgresql" else "mysql").new_database()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        create_tables(connection)
    ours = _described(engine)
    assert ours == _described(RDBStorage(theirs).engine)
    assert _described(RDBStorage(database_url).engine) == ours


def test_no_other_minor_version_of_optuna_is_installed_with_mergefront() -> None:
    major, minor, _ = map(int, OPTUNA.split("."))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"optuna>={major}.{minor},<{major}.{minor + 1}" in project["dependencies"]
