"""Waiting out a database that is away for a while: restarted, failed over, or locked by somebody."""

from __future__ import annotations

import logging
import random
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

_PASSING_CODES = (1020, 1040, 1053, 1205, 1213, 1927, 2002, 2003, 2006, 2013)
"""The same of MySQL, which tells no SQLSTATE: also a snapshot that another transaction was quicker to change."""

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
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, sqlite3.OperationalError):
        return "is locked" in str(cause)
    if not isinstance(cause, sqlalchemy.exc.DBAPIError):
        return isinstance(cause, sqlalchemy.exc.TimeoutError)
    state = getattr(cause.orig, "sqlstate", None)
    if state:
        return str(state).startswith(_PASSING_STATES)
    if cause.connection_invalidated or _code(cause.orig) in _PASSING_CODES:
        return True
    text = str(cause.orig)
    if isinstance(cause, sqlalchemy.exc.OperationalError):
        # psycopg says so without an SQLSTATE when no server answers; SQLite when a lock outlasts its timeout.
        return "connection" in text or "is locked" in text
    return False


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
                _log.warning("the database is away (%s); waiting for it", _reason(error))
            # Workers that lost one server at once must not all come back at once.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            if told:
                _log.warning("the database is back")
            return result


def _code(error: BaseException | None) -> object:
    """The number that MySQL's drivers put first."""
    return error.args[0] if error is not None and error.args else None


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    orig = getattr(cause, "orig", None) or cause
    return (str(orig).splitlines() or [type(orig).__name__])[0]
