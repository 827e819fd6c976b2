"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click

from mergefront.cli.logs import echo
from mergefront.cli.session import Session
from mergefront.optimizer.errors import MergefrontError
from mergefront.optimizer.foreign_text import without_secrets

INTERRUPTED = 130
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def guarded(action: Callable[[], Any], session: Session) -> int:
    """Run ``action``; returns the exit code (0, 1, 2 or 130) after telling stderr what went wrong."""
    try:
        result = action()
        sys.stdout.flush()
    except click.Abort:
        _say(session, "Interrupted.", session.resume_hint())
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MergefrontError as error:
        if session.debug:
            _print_traceback()
        _say(session, f"Error: {without_secrets(str(error))}", session.resume_hint() if error.exit_code != 2 else None)
        return error.exit_code
    except BrokenPipeError:  # the reader went away; Python's own flush at exit must not complain about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, SystemExit) as error:  # code of a user's own that ends the process is an error like others
        if isinstance(error.__context__, BrokenPipeError):
            return 1  # so does rich, which has silenced stdout by then
        message = f"Error: {_refused_place(error) or _unexpected(error)}"
        if session.debug:
            _print_traceback()
        _say(session, None if session.debug else message, session.resume_hint())
        return 1
    return result if isinstance(result, int) else 0


@contextmanager
def on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """While entered, SIGTERM calls ``action`` instead of ending the process."""
    try:
        before = signal.signal(signal.SIGTERM, lambda _number, _frame: action())
    except ValueError:  # not in the main thread: the caller handles signals itself
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def terminable() -> AbstractContextManager[None]:
    """While entered, SIGTERM interrupts like Ctrl-C: what is finished is kept and the exit code is 130."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    return on_sigterm(interrupt)


def _refused_place(error: BaseException) -> str | None:
    """What the system says of a file that it refuses, where that is all there is to know."""
    if not isinstance(error, OSError) or error.errno not in _REFUSALS or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}; name a place that is yours and has room, or change its permissions"


def _unexpected(error: BaseException) -> str:
    line = without_secrets(" ".join(str(error).split())) or "no message"
    return f"unexpected {type(error).__name__}: {line} ('mergefront --debug ...' shows the traceback)"


def _say(session: Session, *lines: str | None) -> None:
    for line in lines:
        if line is not None:
            session.say(line, logging.ERROR)


def _print_traceback() -> None:
    """The traceback of the error under way, without the secrets that its message may hold."""
    echo(without_secrets(traceback.format_exc()), err=True, nl=False)
