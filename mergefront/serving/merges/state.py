"""What the merge service must not forget: its sessions and what each client has used, in an SQLite file of its own.

One process has the file open; every call is one statement and so a transaction.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergefront.optimizer.errors import UserError

_VERSION = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, client TEXT NOT NULL, recipe TEXT, created REAL NOT NULL, last_used REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_by_client ON sessions (client, last_used);
CREATE TABLE IF NOT EXISTS used (
    client TEXT NOT NULL, period TEXT NOT NULL,
    requests INTEGER NOT NULL, items INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (client, period)
);
"""
_COLUMNS = "id, client, recipe, created, last_used"


@dataclass(frozen=True)
class Used:
    """Messages, items in them, and tokens that were scored or generated."""

    requests: int = 0
    items: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class ServiceSession:
    """A client's session. ``recipe`` is the merge that its OpenAI routes answer with, in the wire's form;
    times are seconds since the epoch."""

    id: str
    client: str
    recipe: dict[str, Any] | None
    created: float
    last_used: float


class ServiceState:
    """The state in the file ``path``; raises ``UserError`` for a file that is something else."""

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise UserError(f"state {path}: the folder {path.parent} does not exist; create it first")
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise UserError(f"state {path}: this database is something else; name another file")
            if version > _VERSION:
                raise UserError(
                    f"state {path}: its tables have version {version}, this mergefront knows {_VERSION}; "
                    "upgrade mergefront or name another file"
                )
            self._connection.executescript(_TABLES)
            self._connection.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.DatabaseError as error:
            raise UserError(f"state {path}: cannot be opened as an SQLite file: {error}") from None

    def _rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def add_session(self, session: ServiceSession) -> None:
        recipe = None if session.recipe is None else json.dumps(session.recipe)
        statement = f"INSERT INTO sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)"
        self._rows(statement, session.id, session.client, recipe, session.created, session.last_used)

    def find_session(self, id: str) -> ServiceSession | None:
        found = self._rows(f"SELECT {_COLUMNS} FROM sessions WHERE id = ?", id)
        return _session(found[0]) if found else None

    def sessions(self, client: str | None = None) -> list[ServiceSession]:
        """The sessions of one client, or all, the longest unused first."""
        where, values = ("", ()) if client is None else ("WHERE client = ?", (client,))
        statement = f"SELECT {_COLUMNS} FROM sessions {where} ORDER BY last_used, id"
        return [_session(row) for row in self._rows(statement, *values)]

    def touch_session(self, id: str, when: float) -> None:
        self._rows("UPDATE sessions SET last_used = ? WHERE id = ?", when, id)

    def set_recipe(self, id: str, recipe: dict[str, Any]) -> None:
        self._rows("UPDATE sessions SET recipe = ? WHERE id = ?", json.dumps(recipe), id)

    def remove_session(self, id: str) -> None:
        self._rows("DELETE FROM sessions WHERE id = ?", id)

    def used(self, client: str, period: str) -> Used:
        found = self._rows("SELECT requests, items, tokens FROM used WHERE client = ? AND period = ?", client, period)
        return Used(*found[0]) if found else Used()

    def add_used(self, client: str, period: str, more: Used) -> None:
        self._rows(
            "INSERT INTO used (client, period, requests, items, tokens) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (client, period) DO UPDATE SET requests = requests + excluded.requests, "
            "items = items + excluded.items, tokens = tokens + excluded.tokens",
            client, period, more.requests, more.items, more.tokens,
        )  # fmt: skip

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _session(row: tuple[Any, ...]) -> ServiceSession:
    id, client, recipe, created, last_used = row
    return ServiceSession(id, client, None if recipe is None else json.loads(recipe), created, last_used)
