"""One SQL database: Optuna's tables through its RDBStorage, mergefront's own beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import event, inspect, select
from sqlalchemy.engine import Connection, Engine

from mergefront.optimizer.errors import MergefrontError, UserError
from mergefront.storage import schema

DEFAULT_URL = "sqlite:///mergefront.db"
_BUSY_SECONDS = 60


class Database:
    """A database of studies.

    ``url`` is an SQLAlchemy URL; a path ending in ``.db`` or ``.sqlite`` is taken as SQLite.
    ``create`` False refuses a database that does not exist yet (for commands that only read).
    Raises ``UserError`` for a URL that cannot be used and for tables of a newer version.
    """

    def __init__(self, url: str = DEFAULT_URL, *, create: bool = True) -> None:
        self.url = normalised_url(url)
        path = sqlite_path(self.url)
        if path is not None:
            _check_sqlite_file(path, create)
        optuna.logging.get_logger("optuna.storages")  # sets Optuna's logging up before it is quietened
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.optuna_storage = self._open(create)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if "file is not a database" in str(error):
                raise UserError(f"storage {path}: this file is not an SQLite database; give another path") from None
            raise UserError(f"storage {_safe(self.url)}: cannot be opened: {_first_line(error)}") from None
        except (RuntimeError, ImportError) as error:
            raise UserError(f"storage {_safe(self.url)}: {_first_line(error)}") from None

    def _open(self, create: bool) -> RDBStorage:
        is_sqlite = self.url.startswith("sqlite")
        kwargs: dict[str, Any] = {"connect_args": {"timeout": _BUSY_SECONDS}} if is_sqlite else {"pool_pre_ping": True}
        _check_tables(sqlalchemy.create_engine(self.url, **kwargs), self.url, create)
        storage = RDBStorage(self.url, engine_kwargs=kwargs)
        if is_sqlite:
            _make_sqlite_safe(storage.engine)
            # RDBStorage connected before the listeners were there.
            storage.scoped_session.remove()
            storage.engine.dispose()
        schema.metadata.create_all(storage.engine)
        with storage.engine.begin() as connection:
            if connection.execute(select(schema.schema.c.version)).first() is None:
                connection.execute(schema.schema.insert().values(version=schema.VERSION))
        return storage

    @property
    def engine(self) -> Engine:
        return self.optuna_storage.engine

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that commits on success; a database fault becomes a ``MergefrontError``."""
        try:
            with self.engine.begin() as connection:
                yield connection
        except sqlalchemy.exc.OperationalError as error:
            raise MergefrontError(f"storage {_safe(self.url)}: {_first_line(error)}") from None

    def close(self) -> None:
        """Release every connection."""
        self.optuna_storage.scoped_session.remove()
        self.engine.dispose()


def normalised_url(url: str) -> str:
    """``url``, or the SQLite URL of a plain path."""
    if "://" not in url:
        if url.endswith((".db", ".sqlite", ".sqlite3")):
            return f"sqlite:///{url}"
        raise UserError(f"storage {url!r} is no database URL; write for example sqlite:///mergefront.db")
    try:
        sqlalchemy.engine.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise UserError("storage: the database URL cannot be read; write for example sqlite:///mergefront.db") from None
    return url


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite URL, or None for other databases and for one in memory."""
    parsed = sqlalchemy.engine.make_url(url)
    if not parsed.drivername.startswith("sqlite") or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def _check_sqlite_file(path: Path, create: bool) -> None:
    """Whether the file may be opened.

    Its content is left to SQLite: a process that opens and closes the file by other means drops the
    locks of its own connections to it, and the next writer can corrupt the database
    (https://sqlite.org/howtocorrupt.html, section 2.2).
    """
    if path.exists():
        if path.is_dir():
            raise UserError(f"storage {path}: this is a folder; name a file in it")
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
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _check_tables(engine: Engine, url: str, create: bool) -> None:
    """Refuses tables of a newer version, and a database without any when none are to be made."""
    try:
        if not inspect(engine).has_table(schema.schema.name):
            if not create:
                raise UserError(f"storage {_safe(url)}: this database holds no mergefront studies; name another one")
            return
        with engine.connect() as connection:
            version = connection.execute(select(schema.schema.c.version)).scalar()
    finally:
        engine.dispose()
    if version is not None and version > schema.VERSION:
        raise UserError(
            f"storage {_safe(url)}: its tables have version {version}, this mergefront knows {schema.VERSION}; "
            "upgrade mergefront to open it"
        )


def _safe(url: str) -> str:
    """The URL without its password, for messages."""
    return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "orig", None) or error.__cause__ or error
    return re.sub(r"//[^@/]*@", "//***@", (str(cause).splitlines() or ["unknown fault"])[0])
