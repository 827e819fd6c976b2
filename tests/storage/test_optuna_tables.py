"""Optuna's tables, which are read and written here without Optuna, are those of the installed version."""

from __future__ import annotations

import tomllib
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import Table, select
from sqlalchemy import text as sql

from mergefront.storage.optuna_tables import schema
from mergefront.storage.optuna_tables.reading import OPTUNA, REVISION

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
        stored = connection.execute(select(sql("version_num")).select_from(sql("alembic_version"))).scalars().all()
    assert stored == [REVISION], REMEDY
    assert optuna.__version__.rpartition(".")[0] == OPTUNA.rpartition(".")[0], REMEDY


def test_no_other_minor_version_of_optuna_is_installed_with_mergefront() -> None:
    major, minor, _ = map(int, OPTUNA.split("."))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"optuna>={major}.{minor},<{major}.{minor + 1}" in project["dependencies"]
