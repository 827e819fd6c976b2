"""mergefront's own tables, beside Optuna's in the same database.

| table | a row is |
| --- | --- |
| mergefront_schema | the version of these tables |
| mergefront_studies | a study's whole definition, enough to resume it |
| mergefront_claims | a slot of a study's budget and who works on it |
| mergefront_evaluations | what one recipe scored, or why it could not be scored |
| mergefront_item_sets | the identifiers of the items that were scored together |
| mergefront_item_scores | one task's scores, item by item, in one evaluation |
| mergefront_responses | what a server answered to one exact request |
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from mergefront.storage.json_text import Json, mysql_type

VERSION = 2


class Bytes(TypeDecorator[bytes]):
    """Bytes; MySQL has no room for more than 64 KB in its plain type."""

    impl = LargeBinary
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return mysql_type("LONGBLOB") if dialect.name == "mysql" else LargeBinary()


class Moment(TypeDecorator[datetime]):
    """A time in UTC; MySQL cuts off what is less than a second in its plain type."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return mysql_type("DATETIME", fsp=6) if dialect.name == "mysql" else DateTime()


def utc_now() -> datetime:
    """Now, as a ``Moment`` keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)


metadata = MetaData()

schema = Table("mergefront_schema", metadata, Column("version", Integer, primary_key=True))

studies = Table(
    "mergefront_studies",
    metadata,
    Column("study_id", Integer, primary_key=True, autoincrement=False),  # Optuna's study id
    Column("name", String(512), nullable=False, unique=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("definition", Json, nullable=False),
    Column("root", Text, nullable=False),  # folder that relative paths start from
    Column("evaluations", Integer, nullable=False),  # the budget last asked for
    Column("versions", Json, nullable=False),
    Column("created_at", Moment, nullable=False),
)

claims = Table(
    "mergefront_claims",
    metadata,
    Column("study_id", Integer, ForeignKey("mergefront_studies.study_id", ondelete="CASCADE"), primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("trial_number", Integer),
    Column("finished", Boolean, nullable=False),
    Column("deaths", Integer, nullable=False),  # workers that died on it since somebody last asked to go on
    Column("host", String(255)),
    Column("process", String(64)),  # process id and its start time: a reused id is another process
    Column("heartbeat", Double),  # seconds since the epoch, by the database's clock
    Column("started", Double),  # when the worker took it, likewise
    Index("mergefront_claims_unfinished", "study_id", "finished"),
    Index("mergefront_claims_by_trial", "study_id", "trial_number"),
)

evaluations = Table(
    "mergefront_evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, ForeignKey("mergefront_studies.study_id", ondelete="CASCADE"), nullable=False),
    Column("trial_number", Integer),
    Column("digest", String(32), nullable=False),
    Column("split", String(16), nullable=False),
    Column("recipe", Json, nullable=False),
    Column("failure_kind", String(255)),
    Column("failure", Text),
    Column("scores", Json, nullable=False),
    Column("standard_errors", Json, nullable=False),
    Column("seconds", Json, nullable=False),
    Column("cost", Json, nullable=False),
    Column("details", Json, nullable=False),
    Column("versions", Json, nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("mergefront_evaluations_by_recipe", "study_id", "digest", "split"),
)

item_sets = Table(
    "mergefront_item_sets",
    metadata,
    Column("digest", String(32), primary_key=True),
    Column("ids", Json, nullable=False),
)

item_scores = Table(
    "mergefront_item_scores",
    metadata,
    Column("evaluation_id", Integer, ForeignKey("mergefront_evaluations.id", ondelete="CASCADE"), primary_key=True),
    Column("task", String(255), primary_key=True),
    Column("item_set", String(32), ForeignKey("mergefront_item_sets.digest"), nullable=False),
    Column("scores", Bytes, nullable=False),  # float64, little-endian, in the item set's order
    Column("margins", Bytes),
    UniqueConstraint("evaluation_id", "task"),
)

responses = Table(
    "mergefront_responses",
    metadata,
    Column("key", String(64), primary_key=True),  # hash of server, method, path, body (adapters/remote/http/cache.py)
    Column("server", String(64), nullable=False, index=True),  # hash of the server's identity
    Column("body", Bytes, nullable=False),  # UTF-8, zlib
    Column("requests", Integer, nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("output_tokens", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
)
