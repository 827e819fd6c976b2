"""Those of Optuna's tables that are read and written here, as far as they are (its schema v3.2.0.a).

Optuna's own definitions bring SQLAlchemy's object mapper, which takes commands that only read 0.07 s.
"""

from __future__ import annotations

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Column, DateTime, Enum, Float, Integer, MetaData, PrimaryKeyConstraint, String, Table, Text

OPTUNA, REVISION = "5.0.0", "v3.2.0.a"
"""A version of Optuna and the revision of its tables, which are those that are read and written here."""
FINITE, ABOVE, BELOW = "FINITE", "INF_POS", "INF_NEG"
"""What a value is: a number, or infinite, where no number is stored."""
_metadata = MetaData()
_NUMBER = Float(precision=53)


def is_known() -> bool:
    """Whether the installed Optuna is the version whose tables are known here."""
    return optuna.__version__ == OPTUNA


def _attributes(of: str, kind: str) -> Table:
    columns = (Column(f"{of}_id", Integer), Column("key", String(512)), Column("value_json", Text()))
    return Table(
        f"{of}_{kind}_attributes", _metadata, Column(f"{of}_{kind}_attribute_id", Integer, primary_key=True), *columns
    )


REVISIONS = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's table of the one revision that all of Optuna's tables have."""
STUDIES = Table(
    "studies",
    _metadata,
    Column("study_id", Integer, primary_key=True),
    Column("study_name", String(512), nullable=False),
)
DIRECTIONS = Table(
    "study_directions",
    _metadata,
    Column("study_direction_id", Integer, primary_key=True),
    Column("direction", Enum(StudyDirection), nullable=False),
    Column("study_id", Integer, nullable=False),
    Column("objective", Integer, nullable=False),
)
ATTRIBUTES_OF_STUDIES = {kind: _attributes("study", kind) for kind in ("user", "system")}
TRIALS = Table(
    "trials",
    _metadata,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Enum(TrialState), nullable=False),
    Column("datetime_start", DateTime),
    Column("datetime_complete", DateTime),
)
PARAMS = Table(
    "trial_params",
    _metadata,
    Column("param_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("param_name", String(512)),
    Column("param_value", _NUMBER),
    Column("distribution_json", Text()),
)
VALUES = Table(
    "trial_values",
    _metadata,
    Column("trial_value_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("objective", Integer, nullable=False),
    Column("value", _NUMBER),
    Column("value_type", Enum(FINITE, ABOVE, BELOW, name="trialvaluetype"), nullable=False),
)
ATTRIBUTES, SYSTEM_ATTRIBUTES = _attributes("trial", "user"), _attributes("trial", "system")
INTERMEDIATE = Table(
    "trial_intermediate_values",
    _metadata,
    Column("trial_intermediate_value_id", Integer, primary_key=True),
    Column("trial_id", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("intermediate_value", _NUMBER),
    Column(
        "intermediate_value_type",
        Enum(FINITE, ABOVE, BELOW, "NAN", name="trialintermediatevaluetype"),
        nullable=False,
    ),
)


def to_stored(value: float) -> tuple[float | None, str]:
    """A number as two columns: the number where it is one, and what it is."""
    if value != value:
        return None, "NAN"
    return (None, ABOVE if value > 0 else BELOW) if value in (float("inf"), float("-inf")) else (value, FINITE)


def from_stored(number: float | None, kind: str) -> float:
    """The inverse of ``to_stored``."""
    other = {ABOVE: float("inf"), BELOW: float("-inf"), "NAN": float("nan")}
    return other[kind] if number is None else number
