"""Studies as they are stored: name, whole definition, budget."""

from __future__ import annotations

import json
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import optuna
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import IntegrityError

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.foreign_text import LONGEST_NAME, NAMES, is_name
from mergefront.optimizer.scores.objectives import Objective
from mergefront.storage.database import Database
from mergefront.storage.schema import evaluations, studies, utc_now

COMPARISON = "/compare"
"""What the name of a study's comparison ends with, which is a study of its own."""
MOST_EVALUATIONS = 2**31 - 1
"""What the column of a study's budget holds on every database."""


@dataclass(frozen=True)
class StudyRecord:
    """One row of mergefront_studies; ``study_id`` is Optuna's own."""

    study_id: int
    name: str
    uuid: str
    definition: dict[str, Any]
    root: str
    evaluations: int
    versions: dict[str, str]
    created_at: datetime


def check_name(name: str) -> None:
    """Raises ``UserError`` for a name that no new study can have."""
    if not is_name(name):
        raise UserError(f"study {name[:LONGEST_NAME]!r}: {NAMES}")


def check_free_of_others(database: Database, name: str, objectives: Sequence[Objective]) -> None:
    """Raises ``UserError`` where Optuna's tables have a study of this name that was not made by mergefront."""
    with suppress(KeyError):
        database.optuna_storage.get_study_id_from_name(name)
        _refuse_foreign(optuna.load_study(study_name=name, storage=database.optuna_storage), objectives)


def _refuse_foreign(study: optuna.Study, objectives: Sequence[Objective]) -> None:
    if len(study.directions) != len(objectives) or study.get_trials(deepcopy=False):
        raise UserError(
            f"study {study.study_name!r} exists already in Optuna's tables and was not made by mergefront; use another "
            "name"
        )


def create_or_load(
    database: Database,
    name: str,
    definition: Mapping[str, Any],
    objectives: Sequence[Objective],
    *,
    root: str,
    evaluations: int,
    versions: Mapping[str, str],
) -> StudyRecord:
    """The study of this name, whatever its definition, created if there is none."""
    check_name(name)
    known = find(database, name)
    if known is not None:
        return known
    study = optuna.create_study(
        study_name=name,
        storage=database.optuna_storage,
        load_if_exists=True,
        directions=[objective.direction for objective in objectives],
    )
    _refuse_foreign(study, objectives)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names([objective.name for objective in objectives])
    row: dict[str, Any] = {
        "study_id": study._study_id,
        "name": name,
        "uuid": str(uuid.uuid4()),
        "definition": json.loads(json.dumps(definition)),  # as it is read back: tuples become lists
        "root": root,
        "evaluations": evaluations,
        "versions": dict(versions),
        "created_at": utc_now(),
    }
    try:
        with database.transaction() as connection:
            connection.execute(studies.insert().values(**row))
    except IntegrityError:  # another process was quicker; it wrote the same definition or find() tells
        return create_or_load(
            database, name, definition, objectives, root=root, evaluations=evaluations, versions=versions
        )
    return StudyRecord(**row)


def find(database: Database, name: str) -> StudyRecord | None:
    """The study of this name, or None."""
    if "\0" in name:
        return None  # no study has such a name, and PostgreSQL answers the question with an error
    return _the_one(database, studies.c.name == name)


def with_comparison(database: Database, record: StudyRecord) -> list[StudyRecord]:
    """A study and, where it was compared, its comparison."""
    comparison = find(database, record.name + COMPARISON)
    return [record] if comparison is None else [record, comparison]


def reload(database: Database, record: StudyRecord) -> StudyRecord:
    """The same study as it is now, whatever its name is by now; raises ``UserError`` when it was deleted."""
    found = _the_one(database, studies.c.study_id == record.study_id)
    if found is None or found.uuid != record.uuid:
        raise UserError(f"study {record.name!r} was deleted meanwhile")
    return found


def _the_one(database: Database, where: ColumnElement[bool]) -> StudyRecord | None:
    row = database.read(lambda connection: connection.execute(select(studies).where(where)).first())
    return None if row is None else StudyRecord(**row._mapping)


def load(database: Database, name: str) -> StudyRecord:
    """The study of this name; raises ``UserError`` with the nearest name when there is none."""
    record = find(database, name)
    if record is None:
        names = [known.name for known in all_studies(database)]
        hint = did_you_mean(name, names) if names else "(this database has no studies yet)"
        raise UserError(f"there is no study {name!r} in {database.url} {hint}")
    return record


def all_studies(database: Database) -> list[StudyRecord]:
    """Every study, oldest first."""
    query = select(studies).order_by(studies.c.study_id)
    rows = database.read(lambda connection: connection.execute(query).all())
    return [StudyRecord(**row._mapping) for row in rows]


def study_of_recipe(database: Database, digest: str) -> StudyRecord | None:
    """A study that evaluated the recipe of this digest; None where none did."""
    return _the_one(
        database, studies.c.study_id.in_(select(evaluations.c.study_id).where(evaluations.c.digest == digest))
    )


def update(database: Database, record: StudyRecord, **values: Any) -> StudyRecord:
    """Change columns of a study's row (``root``, ``definition``, ``evaluations``); returns the changed record."""
    if values:
        with database.transaction() as connection:
            connection.execute(studies.update().where(studies.c.study_id == record.study_id).values(**values))
    return replace(record, **values)
