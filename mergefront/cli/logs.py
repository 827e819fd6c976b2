"""The log on stderr, for people or for programs: one JSON object a line with ``--log-format json``."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from mergefront.optimizer.foreign_text import visible, without_secrets


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text that may be others' in part: with nothing in it that commands the terminal."""
    click.echo(visible(text), err=err, nl=nl)


def configure_log(style: str) -> None:
    """Send mergefront's log records to stderr, as "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else _Text())
    logger = logging.getLogger("mergefront")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO if style == "json" else logging.WARNING)
    # It prints tracebacks of connections that are lost; the storage waits for the database and says so itself.
    logging.getLogger("sqlalchemy.pool").addHandler(logging.NullHandler())


def log_event(event: str, **facts: Any) -> None:
    """A line of the JSON log that is an event with facts; nothing in a log for people."""
    logging.getLogger("mergefront.events").info(event, extra={"facts": facts})


def log_fields(record: logging.LogRecord) -> dict[str, Any]:
    """A log record as data: time (UTC), level, worker, message or event, and the event's facts."""
    facts: Mapping[str, Any] = getattr(record, "facts", {})
    is_event = record.name == "mergefront.events"
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "event" if is_event else "message": without_secrets(record.getMessage()),
        **({} if is_event else {"logger": record.name}),
        **facts,
    }


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = log_fields(record)
        if record.exc_info:
            fields["traceback"] = without_secrets(self.formatException(record.exc_info))
        return visible(without_secrets(json.dumps(fields, ensure_ascii=False, default=str)))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(f"{record.levelname.capitalize()}: {without_secrets(record.getMessage())}")
