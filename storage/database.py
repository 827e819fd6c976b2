"""One SQL database: Optuna's tables through its RDBStorage, mergefront's own beside them."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import optuna
import sqlalchemy
from sqlalchemy import ColumnElement, Select, Table, event, inspect, literal_column, null, select, text
from sqlalchemy.engine import Connection, Engine

from mergefront.optimizer.errors import StorageError, UserError
from mergefront.storage import DEFAULT_STORAGE, schema
from mergefront.storage.json_text import from_json, to_json
from mergefront.storage.migrations import upgrade
from mergefront.storage.optuna_tables.reading import are_current
from mergefront.storage.optuna_tables.retrying_storage import READS, RetryingStorage, without_collector
from mergefront.storage.optuna_tables.schema import REVISIONS, STUDIES, is_known
from mergefront.storage.optuna_tables.tables import create_tables, widen_texts
from mergefront.storage.retry import LOCKED, TransientError, first_line, is_transient, retry_transient, sqlite_code

_SQLITE = "sqlite:///"
_OPTIONS = re.compile(r"\?\w+=[^/?]*$")
_BUSY_SECONDS = 60
_CREATION_SECONDS = 30.0
_CHECKPOINT_SECONDS = 1.0
DURABLE = "mergefront_durable"
"""Execution option of a connection whose commits wait for the disk."""
_EXTRAS = {"sqlite": "", "postgresql": "postgres", "mysql": "mysql"}
"""The kinds of databases that are supported, and the extra that has each one's driver."""
_log = logging.getLogger("mergefront.storage")

Result = TypeVar("Result")
_CLOCKS: Mapping[str, tuple[ColumnElement[Any], ColumnElement[Any]]] = {
    "postgresql": (
        literal_column("extract(epoch FROM clock_timestamp())"),
        literal_column("extract(epoch FROM pg_postmaster_start_time())"),
    ),
    "mysql": (literal_column("unix_timestamp(sysdate(6))"), null()),
}
"""What servers say of the time, and of when they began."""
_SQLITE_REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space, then resume",
    sqlite3.SQLITE_IOERR: "the disk is full or broken; free some space or check it, then resume",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore a backup",
    **dict.fromkeys(
        LOCKED, f"another program held it for more than {_BUSY_SECONDS} seconds; end that one, then resume"
    ),
}
_MADE_MEANWHILE = ("42P07", "42710", "42S01", 1684)
"""PostgreSQL's codes of a table or a type that is there, MariaDB's of a table that is there or is being made."""


class NoStudiesError(UserError):
    """A database without mergefront's tables was to be read."""


class Tables(Enum):
    """What is known of a database's tables, Optuna's and ours, before it is opened."""

    MISSING = auto()
    UNCHECKED = auto()
    CURRENT = auto()


class Database:
    """A database of studies.

    ``url`` is an SQLAlchemy URL, or the path of an SQLite file (see ``normalised_url``).
    ``create`` False refuses a database that does not exist yet (for commands that only read).
    ``may_upgrade`` brings old tables on a server up to date; in an SQLite file that is done without asking.
    ``upgraded`` then says where a copy of the old ones is. Raises ``UserError`` for a URL that cannot be
    used and for tables of a newer version.
    """

    def __init__(self, url: str = DEFAULT_STORAGE, *, create: bool = True, may_upgrade: bool = False) -> None:
        self.url = normalised_url(url)
        kind = "sqlite" if self.is_sqlite else sqlalchemy.engine.make_url(self.url).get_backend_name()
        if kind not in _EXTRAS:
            raise UserError(
                f"storage {_safe(self.url)}: {kind} is not supported; use SQLite (sqlite:///FILE.db), PostgreSQL "
                "(postgresql+psycopg://...) or MariaDB (mysql+pymysql://...)"
            )
        self._may_upgrade = may_upgrade
        path = sqlite_path(self.url)
        if path is not None:
            _check_sqlite_file(path, create)
        optuna.logging.get_logger("optuna.storages")  # sets Optuna's logging up before it is quietened
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.optuna_storage = self._open(create)
            self._durable_engine = self.engine.execution_options(**{DURABLE: True})
        except StorageError as error:
            raise UserError(str(error)) from None
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if is_transient(error) and not self.is_sqlite:  # right, perhaps, and away: starting again may help
                raise StorageError(f"storage {_safe(self.url)}: cannot be opened: {first_line(error)}") from None
            if sqlite_code(error) == sqlite3.SQLITE_NOTADB:
                raise UserError(f"storage {path}: this file is not an SQLite database; give another path") from None
            raise UserError(f"storage {_safe(self.url)}: cannot be opened: {_with_remedy(error)}") from None
        except ImportError as error:
            remedy = f'it needs the extra: pip install "mergefront[{_EXTRAS[kind]}]"'
            raise UserError(f"storage {_safe(self.url)}: {first_line(error)}; {remedy}") from None
        # What drivers make of options that they do not know is anything.
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise UserError(f"storage {_safe(self.url)}: {first_line(error)}") from None

    def _open(self, create: bool) -> RetryingStorage:
        kwargs: dict[str, Any] = {"json_serializer": to_json, "json_deserializer": from_json}
        if self.is_sqlite:
            # SQLite is given the path itself, since SQLAlchemy and Optuna read more into %, ?, # and { of a URL.
            kwargs["creator"] = partial(
                sqlite3.connect, str(sqlite_path(self.url)), timeout=_BUSY_SECONDS, check_same_thread=False
            )
        else:
            # No ping before each transaction: one on a connection that was lost is repeated (``retry_transient``).
            kwargs["connect_args"] = {"connect_timeout": 10}
        engine = sqlalchemy.create_engine(self._opened_by, **kwargs)
        try:
            self.upgraded, tables = self._checked(engine, create)
        finally:
            engine.dispose()
        # Processes that open a new database at once race for its tables; the losers look again.
        ends = time.monotonic() + _CREATION_SECONDS
        while True:
            try:
                return self._made(kwargs, create, tables)
            except sqlalchemy.exc.DBAPIError as error:
                if not _made_meanwhile(error) or time.monotonic() > ends:
                    raise
                tables = Tables.UNCHECKED
                time.sleep(0.1)

    def _made(self, kwargs: dict[str, Any], create: bool, tables: Tables) -> RetryingStorage:
        storage = RetryingStorage(self._opened_by, dict(kwargs), self.fault, checked=tables is not Tables.UNCHECKED)
        if self.is_sqlite:
            _make_sqlite_safe(storage.engine)
            # RDBStorage connected before the listeners were there.
            storage.remove_session()
            storage.engine.dispose()
        if tables is Tables.MISSING:
            with storage.engine.begin() as connection:
                create_tables(connection)
        if storage.engine.dialect.name == "mysql" and (create or self._may_upgrade):
            with storage.engine.begin() as connection:
                widen_texts(connection)
        if tables is Tables.CURRENT:
            return storage
        with storage.engine.begin() as connection:
            schema.metadata.create_all(connection)
            # Written last: where it is, everything is.
            if connection.execute(select(schema.schema.c.version)).first() is None:
                connection.execute(schema.schema.insert().values(version=schema.VERSION))
        return storage

    def _checked(self, engine: Engine, create: bool) -> tuple[str | None, Tables]:
        """Refuses tables of a newer version, and a database without any when none are to be made.

        Old tables in an SQLite file are upgraded; those on a server wait for 'mergefront upgrade', since
        workers of the old version may be at work on them. Returns where a copy of old tables is, and what is
        known of all tables now.
        """
        inspector = inspect(engine)
        if not inspector.has_table(schema.schema.name):
            if engine.dialect.name == "mysql":
                _check_collation(engine, _safe(self.url))
            if not create:
                raise NoStudiesError(
                    f"storage {_safe(self.url)}: this database holds no mergefront studies; name another one"
                )
            is_empty = not any(map(inspector.has_table, (STUDIES.name, REVISIONS.name)))
            return None, Tables.MISSING if is_empty and is_known() else Tables.UNCHECKED
        with engine.connect() as connection:
            version = connection.execute(select(schema.schema.c.version)).scalar()
            if version is None or version == schema.VERSION:
                is_current = version is not None and are_current(connection)
                return None, Tables.CURRENT if is_current else Tables.UNCHECKED
        if version > schema.VERSION:
            raise UserError(
                f"storage {_safe(self.url)}: its tables have version {version}, this mergefront knows "
                f"{schema.VERSION}; upgrade mergefront to open it"
            )
        path = sqlite_path(self.url)
        if path is None and not self._may_upgrade:
            raise UserError(
                f"storage {_safe(self.url)}: its tables have version {version}, this mergefront needs "
                f"{schema.VERSION}; end the workers, then run: mergefront upgrade --storage {_safe(self.url)}"
            )
        if path is not None:
            _make_sqlite_safe(engine)
            engine.dispose()
        kept = upgrade(engine, path)
        if kept is not None:
            _log.warning("the tables of version %s were upgraded to %s; a copy is in %s", version, schema.VERSION, kept)
        return kept, Tables.UNCHECKED

    @property
    def is_sqlite(self) -> bool:
        """Whether all processes that work on it run on one machine."""
        return self.url.startswith(_SQLITE)

    @property
    def _opened_by(self) -> str:
        """The URL that SQLAlchemy and Optuna are given; for SQLite, any file's, since the connections are ours."""
        return DEFAULT_STORAGE if self.is_sqlite else self.url

    @property
    def engine(self) -> Engine:
        return self.optuna_storage.engine

    def transaction(self, *, durable: bool = False) -> AbstractContextManager[Connection]:
        """A transaction that commits on success; a database fault becomes a ``StorageError``.

        What a ``durable`` one committed outlasts a power cut too; SQLite writes others to the disk a little later,
        in their order. A violated constraint stays SQLAlchemy's ``IntegrityError``.
        """
        return self._begun(self._durable_engine if durable else self.engine)

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that only reads, all of it from one moment; it keeps nobody from writing."""
        return self._begun(self.optuna_storage.reading_engine)

    @contextmanager
    def _begun(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except sqlalchemy.exc.IntegrityError:
            raise
        except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError) as error:
            raise self.fault(error) from None

    def read(self, look: Callable[[Connection], Result]) -> Result:
        """What ``look`` finds, all of it from one moment; waits for a database that is away."""

        def attempt() -> Result:
            with without_collector(), self.reading() as connection:
                return look(connection)

        return retry_transient(attempt)

    def write(
        self, change: Callable[[Connection], Result], *, durable: bool = False, patience: float | None = None
    ) -> Result:
        """Make a change in one transaction; waits ``patience`` seconds for a database that is away.

        ``change`` may be committed twice: it must be safe to repeat. ``durable``: see ``transaction``.
        """

        def attempt() -> Result:
            with self.transaction(durable=durable) as connection:
                return change(connection)

        return retry_transient(attempt, patience)

    def fault(self, error: Exception) -> StorageError:
        """What a user reads of a database error."""
        kind = TransientError if is_transient(error) else StorageError
        return kind(f"storage {_safe(self.url)}: {_with_remedy(error)}")

    def now(self, connection: Connection, locking: Select[Any] | None = None) -> tuple[float, float]:
        """The time that all its users share and since when it runs, in seconds since the epoch.

        A server's own clock, since those of two machines differ; this machine's for SQLite. ``locking`` is a statement
        that locks a row of a server's and is sent with the question; the time may be that before the wait for the lock.
        """
        clock = _CLOCKS.get(connection.dialect.name)
        if clock is None:
            return time.time(), 0.0
        now, since = connection.execute((select() if locking is None else locking).add_columns(*clock)).one()[-2:]
        if since is None:
            since = float(now) - float(connection.execute(text("SHOW GLOBAL STATUS LIKE 'Uptime'")).one()[1])
        return float(now), float(since)

    @contextmanager
    def checkpoint_at_end(self) -> Iterator[None]:
        """When it is left, an SQLite file holds all that was committed; see ``checkpoint``."""
        try:
            yield
        finally:
            checkpoint(self.url)

    def close(self) -> None:
        """Release every connection."""
        self.optuna_storage.remove_session()
        self.engine.dispose()


def _made_meanwhile(error: sqlalchemy.exc.DBAPIError) -> bool:
    """Whether tables could not be made since another process made them, or makes them right now."""
    if isinstance(error, sqlalchemy.exc.IntegrityError):
        return True
    first = error.orig.args[0] if error.orig is not None and error.orig.args else None
    if isinstance(first, str) and first.endswith("already exists"):  # SQLite has no code for it
        return True
    return first in _MADE_MEANWHILE or getattr(error.orig, "sqlstate", None) in _MADE_MEANWHILE


def insert_missing(connection: Connection, table: Table, row: Mapping[str, Any]) -> None:
    """Insert a row unless one of its key is there, also when another process inserts it at the same moment."""
    if connection.dialect.name == "mysql":
        connection.execute(table.insert().prefix_with("IGNORE").values(**row))
        return
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).values(**row).on_conflict_do_nothing())


def normalised_url(url: str, folder: Path = Path()) -> str:
    """One spelling per database: ``url``, or ``sqlite:///PATH`` with every character of the path as it is.

    A plain path ending in ``.db``, ``.sqlite`` or ``.sqlite3`` is an SQLite file's; a relative one begins in
    ``folder``. The path in an SQLite URL is taken as it is written too; ``%20`` is a space only where no folder has
    the written name and one has the other. Raises ``UserError`` for a URL that cannot be read and for a database
    in memory.
    """
    if "\0" in url or any("\ud800" <= letter <= "\udfff" for letter in url):
        raise UserError(f"storage {url!r:.200}: it has a character that no path and no URL can have")
    if "://" not in url:
        if url.endswith((".db", ".sqlite", ".sqlite3")):
            return f"{_SQLITE}{folder / url}"
        raise UserError(f"storage {url!r} is no database URL; write for example sqlite:///mergefront.db")
    if url.startswith("sqlite"):
        return f"{_SQLITE}{_path_in_url(url, folder)}"
    try:
        sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise UserError("storage: the database URL cannot be read; write for example sqlite:///mergefront.db") from None
    return url


def _path_in_url(url: str, folder: Path) -> Path:
    kind, _, written = url.partition(":///")
    if kind not in ("sqlite", "sqlite+pysqlite"):
        raise UserError(f"storage {url}: this is no SQLite URL; write for example sqlite:///mergefront.db")
    if written in ("", ":memory:", "file::memory:"):
        raise UserError(
            f"storage {url}: a study cannot be kept in memory, since several connections share it; "
            "name a file, for example sqlite:///mergefront.db"
        )
    if _OPTIONS.search(written):
        raise UserError(f"storage {url}: an SQLite URL has no options here; end it with the file's name")
    path, unescaped = folder / written, folder / unquote(written)
    return unescaped if not path.parent.is_dir() and unescaped.parent.is_dir() else path


def checkpoint(url: str) -> None:
    """Moves what was committed from SQLite's log into the file itself, so that a copy of the file has all of it.

    As far as possible: what other processes are reading or writing right now stays in the log, and the last of them
    to end moves it. Nothing is done for other databases and for files that are not there.
    """
    path = sqlite_path(normalised_url(url))
    if path is None or not path.is_file():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=_CHECKPOINT_SECONDS)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _check_collation(engine: Engine, shown: str) -> None:
    """Raises ``UserError`` for a MySQL database that takes different names for the same or cannot write them all."""
    with engine.connect() as connection:
        name, collation = connection.execute(text("SELECT database(), @@collation_database")).one()
    if collation != "utf8mb4_bin":
        raise UserError(
            f"storage {shown}: its collation {collation} mixes up names such as A and a; make the database with "
            f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        )


def sqlite_path(url: str) -> Path | None:
    """The file of a normalised SQLite URL, or None for other databases."""
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def _check_sqlite_file(path: Path, create: bool) -> None:
    """Whether the file may be opened.

    Its content is left to SQLite: a process that opens and closes the file by other means drops the
    locks of its own connections to it, and the next writer can corrupt the database
    (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    try:
        is_there = path.exists()
    except OSError as error:  # the name is too long
        raise UserError(f"storage {str(path)[:200]}: {error.strerror}") from None
    if is_there:
        if path.is_dir():
            raise UserError(f"storage {path}: this is a folder; name a file in it")
        if not path.is_file():
            raise UserError(f"storage {path}: this is a device, a pipe or a socket; name a file")
    elif not create:
        raise UserError(f"storage {path}: there is no such database; name it with --storage sqlite:///PATH")
    elif not path.parent.exists():
        raise UserError(f"storage {path}: the folder {path.parent} does not exist; create it first")


def _make_sqlite_safe(engine: Engine) -> None:
    """Write-ahead log and immediate transactions: many processes, no lost or doubled work.

    SQLite ignores SELECT ... FOR UPDATE; taking the write lock when a transaction begins is what
    makes read-then-write sequences, Optuna's and ours, atomic.
    """

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        # SQLite does not wait for a lock here, and a file that another process opens first needs one.
        retry_transient(lambda: cursor.execute("PRAGMA journal_mode=WAL"), _BUSY_SECONDS)
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get(READS):
            connection.exec_driver_sql("BEGIN")
            return
        # Waiting for the disk at every commit would cost a trial four waits instead of one.
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get(DURABLE) else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _safe(url: str) -> str:
    """The URL without its password, for messages."""
    if url.startswith(_SQLITE):
        return url
    return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)


def _with_remedy(error: Exception) -> str:
    """What went wrong and, where one is known, what to do about it."""
    remedy = _SQLITE_REMEDIES.get(sqlite_code(error) or sqlite3.SQLITE_OK)
    return "; ".join(part for part in (first_line(error), remedy) if part)
