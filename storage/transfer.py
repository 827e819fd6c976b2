"""A study's life: rename, copy, delete, and move between databases.

A copy carries everything: Optuna's trials with their attributes, claims, evaluations, item scores. It
is how a study is exported to one portable SQLite file, imported from it, or moved to PostgreSQL. What
servers answered goes along for studies that ask servers, so that nothing is paid for twice.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import optuna
from sqlalchemy import ColumnElement, Table, select
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import IntegrityError

from mergefront.optimizer.errors import UserError
from mergefront.storage.database import Database, insert_missing
from mergefront.storage.optuna_tables.tables import delete_study as delete_optuna_study
from mergefront.storage.optuna_tables.tables import rename_study as rename_optuna_study
from mergefront.storage.schema import claims, evaluations, item_scores, item_sets, responses, studies
from mergefront.storage.studies import StudyRecord, check_name, find, load, with_comparison

_ROWS_AT_ONCE = 500


def rename(database: Database, name: str, new_name: str) -> None:
    """Give a study, with its comparison, another name; raises ``UserError`` when that is taken.

    Running workers are not disturbed.
    """
    renamed = {
        record.study_id: new_name + record.name.removeprefix(name)
        for record in with_comparison(database, load(database, name))
    }
    for wanted in renamed.values():
        check_name(wanted)
        _check_free(database, wanted)
    try:
        with database.transaction() as connection:
            for study_id, wanted in renamed.items():
                rename_optuna_study(connection, study_id, wanted)
                connection.execute(studies.update().where(studies.c.study_id == study_id).values(name=wanted))
    except IntegrityError:
        raise UserError(f"a study {new_name!r} exists already; choose another name") from None


def delete(database: Database, name: str) -> None:
    """Remove a study with all its trials and evaluations, and its comparison, all or nothing.

    What servers answered stays, since other studies may ask the same.
    """
    gone = with_comparison(database, load(database, name))
    with database.transaction() as connection:
        for record in gone:
            own = select(evaluations.c.id).where(evaluations.c.study_id == record.study_id)
            connection.execute(item_scores.delete().where(item_scores.c.evaluation_id.in_(own)))
            for table in (evaluations, claims, studies):
                connection.execute(table.delete().where(table.c.study_id == record.study_id))
            delete_optuna_study(connection, record.study_id)
    # A worker of another study may be about to use a set again; then the sets stay until a later deletion.
    with suppress(IntegrityError), database.transaction() as connection:
        connection.execute(item_sets.delete().where(item_sets.c.digest.not_in(select(item_scores.c.item_set))))


def copy(
    source: Database,
    name: str,
    target: Database,
    new_name: str | None = None,
    *,
    root: str | None = None,
    with_responses: bool = False,
) -> StudyRecord:
    """Copy a study, within a database or to another one; trial numbers stay.

    ``root`` is the folder of its files as the target keeps it (default: as the source does); ``with_responses``
    takes along what servers answered.

    The copy appears in one piece: mergefront's own rows, without which nothing lists or resumes it,
    are written last and all at once. Raises ``UserError`` when the name is taken in the target.
    """
    record = load(source, name)
    wanted = name if new_name is None else new_name
    if new_name is not None:
        check_name(new_name)
    _check_free(target, wanted)
    _remove_half_copy(target, wanted)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        optuna.copy_study(
            from_study_name=name,
            from_storage=source.optuna_storage,
            to_storage=target.optuna_storage,
            to_study_name=wanted,
        )
    study_id = target.optuna_storage.get_study_id_from_name(wanted)
    with source.transaction() as connection:
        kept_claims = _rows(connection, claims, claims.c.study_id == record.study_id)
        kept = _rows(connection, evaluations, evaluations.c.study_id == record.study_id)
        own = select(evaluations.c.id).where(evaluations.c.study_id == record.study_id)
        scores = _rows(connection, item_scores, item_scores.c.evaluation_id.in_(own))
        used_sets = select(item_scores.c.item_set).where(item_scores.c.evaluation_id.in_(own))
        sets = _rows(connection, item_sets, item_sets.c.digest.in_(used_sets))
    made = replace(record, study_id=study_id, name=wanted, uuid=str(uuid.uuid4()), root=root or record.root)
    with target.transaction() as connection:
        connection.execute(studies.insert().values(**made.__dict__))
        known = set(connection.execute(select(item_sets.c.digest)).scalars())
        _insert(connection, item_sets, [row._asdict() for row in sets if row.digest not in known])
        # Nobody works on the copy: what was under way in the source is free to be taken over here.
        freed = {"host": None, "process": None, "heartbeat": None}
        _insert(connection, claims, [{**row._asdict(), "study_id": study_id, **freed} for row in kept_claims])
        new_ids: dict[int, int] = {}
        for row in kept:
            values = {**row._asdict(), "study_id": study_id}
            del values["id"]
            key = connection.execute(evaluations.insert().values(**values)).inserted_primary_key
            assert key is not None
            new_ids[row.id] = int(key[0])
        _insert(
            connection, item_scores, [{**row._asdict(), "evaluation_id": new_ids[row.evaluation_id]} for row in scores]
        )
    if target.url != source.url and with_responses:
        _copy_responses(source, target)
    return made


def _copy_responses(source: Database, target: Database) -> None:
    last = ""
    while True:
        with source.reading() as connection:
            found = connection.execute(
                select(responses).where(responses.c.key > last).order_by(responses.c.key).limit(_ROWS_AT_ONCE)
            ).all()
        if not found:
            return
        last = found[-1].key
        with target.transaction() as connection:
            for row in found:
                insert_missing(connection, responses, row._asdict())


def _check_free(database: Database, name: str) -> None:
    if find(database, name) is not None:
        raise UserError(f"a study {name!r} exists already in this database; choose another name")


def _remove_half_copy(database: Database, name: str) -> None:
    """Optuna's part of a copy that was interrupted: marked by mergefront's attributes, but without its row."""
    for summary in optuna.get_all_study_summaries(database.optuna_storage, include_best_trial=False):
        if summary.study_name != name:
            continue
        if not any(key.startswith("mergefront:") for key in summary.user_attrs):
            raise UserError(
                f"Optuna has a study {name!r} in this database that is not mergefront's; choose another name"
            )
        with database.transaction() as connection:
            delete_optuna_study(connection, summary._study_id)


def _rows(connection: Connection, table: Table, where: ColumnElement[bool]) -> Sequence[Row[Any]]:
    return connection.execute(select(table).where(where)).all()


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        connection.execute(table.insert(), rows[start : start + _ROWS_AT_ONCE])
