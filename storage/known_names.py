"""Names of studies and numbers of their trials, for a shell that completes what is typed: at once, or not at all.

Neither SQLAlchemy nor Optuna is imported, which would take a second at each key; so SQLite files only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

_SECONDS = 0.2
"""So long a file that is being written is waited for."""


def study_names(url: str) -> list[str]:
    """The studies in an SQLite file, oldest first; none of any other database, and of one that cannot be read now."""
    return _first_column(url, "SELECT name FROM mergefront_studies ORDER BY study_id")


def trial_numbers(url: str, study: str) -> list[str]:
    """The finished trials of a study, likewise."""
    return _first_column(
        url,
        "SELECT number FROM trials JOIN mergefront_studies USING (study_id) "
        "WHERE name = ? AND state = 'COMPLETE' ORDER BY number",
        study,
    )


def _first_column(url: str, query: str, *values: str) -> list[str]:
    path = Path(url.removeprefix("sqlite:///"))
    try:
        if not path.is_file():
            return []
        with closing(sqlite3.connect(path, timeout=_SECONDS)) as connection:
            rows: Sequence[tuple[object, ...]] = connection.execute(query, values).fetchall()
    except (sqlite3.Error, OSError, ValueError):
        return []
    return [str(row[0]) for row in rows]
