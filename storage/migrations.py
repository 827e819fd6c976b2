"""Older tables of mergefront brought up to date, after a copy of them was put aside.

Not by alembic: its table of versions would be Optuna's, which then refuses the database.

A step is what changed from one version to the next. Steps are run in one transaction, so that an upgrade
that is killed leaves the old version as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import inspect, select, text
from sqlalchemy.engine import Connection, Engine

from mergefront.optimizer.errors import UserError
from mergefront.storage import schema


def _since_version_1(connection: Connection) -> None:
    """Since when a worker is at its claim, and a way to find unfinished claims among thousands."""
    connection.execute(text("ALTER TABLE mergefront_claims ADD COLUMN started FLOAT"))
    for index in schema.claims.indexes:
        index.create(connection, checkfirst=True)


STEPS: Mapping[int, Callable[[Connection], None]] = {1: _since_version_1}
"""Version -> what leads from it to the next one."""


def upgrade(engine: Engine, sqlite_file: Path | None) -> str | None:
    """Bring mergefront's tables to this version; returns where the copy of the old ones is, None if nothing was old.

    An SQLite file is copied whole, beside itself; on a server every table of mergefront is copied in the
    same database. Raises ``UserError`` when there is no room for the copy or one is in the way.
    """
    version = _version(engine)
    if version >= schema.VERSION:
        return None
    kept = _copy_file(engine, sqlite_file, version) if sqlite_file is not None else None
    with engine.begin() as connection:
        # Another process may have been quicker; its transaction is over now.
        row = connection.execute(select(schema.schema.c.version).with_for_update()).one()
        if row.version >= schema.VERSION:
            return None
        if kept is None:
            kept = _copy_tables(connection, version)
        for step in range(row.version, schema.VERSION):
            STEPS[step](connection)
        connection.execute(schema.schema.update().values(version=schema.VERSION))
    return kept


def _version(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(schema.schema.c.version)).scalar_one())


def _copy_file(engine: Engine, path: Path, version: int) -> str:
    target = path.with_name(f"{path.name}.version{version}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.version{version}.{number}")
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("VACUUM INTO ?", (str(target),))
    return str(target)


def _copy_tables(connection: Connection, version: int) -> str:
    known = set(inspect(connection).get_table_names())
    suffix = f"_version{version}"
    for table in schema.metadata.sorted_tables:
        copy = f"{table.name}{suffix}"
        if copy in known:
            raise UserError(f"the table {copy} is in the way of the copy that an upgrade makes; rename or drop it")
        if table.name in known:
            connection.execute(text(f"CREATE TABLE {copy} AS SELECT * FROM {table.name}"))
    return f"tables mergefront_*{suffix}"
