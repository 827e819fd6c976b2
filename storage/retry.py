"""Waiting out a database that is away for a while: restarted, failed over, or locked by somebody."""

from __future__ import annotations

import logging
import random
import re
import sqlite3
import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError

from mergefront.optimizer.errors import StorageError

PATIENCE_SECONDS = 300.0
"""How long a search waits for its database to come back before it stops."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_PASSING_STATES = ("08", "40", "55P03", "57P", "53300")
"""SQLSTATE: connection gone, deadlock or serialisation, lock not available, server stopping, too many clients."""

_PASSING_CODES = (1020, 1040, 1053, 1152, 1184, 1203, 1205, 1213, 1927, 2002, 2003, 2006, 2013)
"""The same of MySQL, which tells no SQLSTATE: also a snapshot that another transaction was quicker to change."""
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""The same of SQLite: a lock outlasted the time that a connection waits for it."""

Result = TypeVar("Result")
_log = logging.getLogger("mergefront.storage")


class TransientError(StorageError):
    """The database cannot be used now; the same transaction may succeed later."""


def is_transient(error: BaseException) -> bool:
    """Whether a database fault is one that goes away by itself.

    A lost connection leaves open whether the transaction was committed, so only what may run twice
    can be repeated.
    """
    if isinstance(error, TransientError):
        return True
    raised = driver_error(error)
    if isinstance(raised, sqlite3.Error):
        return sqlite_code(error) in LOCKED
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if not isinstance(cause, sqlalchemy.exc.DBAPIError):
        return isinstance(cause, sqlalchemy.exc.TimeoutError)
    if cause.connection_invalidated:
        return True
    if hasattr(raised, "sqlstate"):
        # psycopg knows no SQLSTATE where no server answered.
        no_answer = raised.sqlstate is None and isinstance(cause, sqlalchemy.exc.OperationalError)
        return no_answer or str(raised.sqlstate).startswith(_PASSING_STATES)
    return bool(raised.args) and raised.args[0] in _PASSING_CODES


def retry_transient(action: Callable[[], Result], seconds: float | None = None) -> Result:
    """What ``action`` returns, trying again for ``seconds`` (``PATIENCE_SECONDS``) while the database is away.

    ``action`` may run several times although it was committed once: it must be safe to repeat.
    """
    ends = time.monotonic() + (PATIENCE_SECONDS if seconds is None else seconds)
    pause = _FIRST_PAUSE
    told = False
    while True:
        try:
            result = action()
        except Exception as error:
            if not is_transient(error) or time.monotonic() + pause > ends:
                raise
            if not told and pause > 0.5:
                told = True
                _log.warning("the database is away (%s); waiting for it", first_line(error))
            # Workers that lost one server at once must not all come back at once.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if told:
                _log.warning("the database is back")
            return result


def driver_error(error: BaseException) -> BaseException:
    """What the database's driver raised, below the errors of SQLAlchemy and Optuna."""
    cause = error.__cause__ or error
    return getattr(cause, "orig", None) or cause


def sqlite_code(error: BaseException) -> int | None:
    """SQLite's primary result code (https://sqlite.org/rescode.html); None for an error of anything else."""
    code: int | None = getattr(driver_error(error), "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def first_line(error: BaseException) -> str:
    """What the driver says, without the password in a URL."""
    raised = driver_error(error)
    return re.sub(r"//[^@/]*@", "//***@", (str(raised).splitlines() or [type(raised).__name__])[0])
