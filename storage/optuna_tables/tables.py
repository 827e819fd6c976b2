"""Writing Optuna's tables directly.

Optuna commits every parameter and attribute of a trial by itself (15 transactions for a trial of 12 parameters); a
search that keeps every step durable cannot afford that.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Table, func, insert, select
from sqlalchemy import text as sql
from sqlalchemy.engine import Connection

from mergefront.optimizer.search.ledger import Attributes
from mergefront.storage.optuna_tables.schema import (
    ATTRIBUTES,
    INTERMEDIATE,
    PARAMS,
    REVISION,
    REVISIONS,
    STUDIES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    VALUES,
    to_stored,
)
from mergefront.storage.schema import utc_now


def create_tables(connection: Connection) -> None:
    """All of Optuna's tables, as its ``RDBStorage`` makes them, in one transaction and without alembic's scripts.

    For the version of Optuna that ``is_known``. What is there already is left as it is.
    """
    from optuna.storages._rdb import models

    models.BaseModel.metadata.create_all(connection)
    if connection.execute(select(models.VersionInfoModel.version_info_id)).first() is None:
        row = {"schema_version": models.SCHEMA_VERSION, "library_version": optuna.__version__}
        connection.execute(insert(models.VersionInfoModel).values(**row))
    REVISIONS.create(connection, checkfirst=True)
    if connection.execute(select(REVISIONS)).first() is None:
        connection.execute(REVISIONS.insert().values(version_num=REVISION))


def create_trial(connection: Connection, study_id: int, template: FrozenTrial | None) -> FrozenTrial:
    """A new trial, running unless ``template`` says otherwise, with everything that ``template`` holds.

    Optuna numbers a study's trials by counting them, so only one may be made at a time.
    """
    if connection.dialect.name != "sqlite":  # where the transaction has the only lock for writing
        connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id).with_for_update()).one()
    number = connection.execute(select(func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)).scalar()
    made = copy.deepcopy(template) if template is not None else optuna.trial.create_trial(state=TrialState.RUNNING)
    if template is None or (made.datetime_start is None and made.state != TrialState.WAITING):
        made.datetime_start = utc_now()
    row: dict[str, Any] = {"study_id": study_id, "number": number, "state": made.state}
    row |= {"datetime_start": made.datetime_start, "datetime_complete": made.datetime_complete}
    key = connection.execute(TRIALS.insert().values(**row)).inserted_primary_key
    assert key is not None
    made.number, made._trial_id = int(number or 0), int(key[0])
    _fill(connection, made._trial_id, made)
    return made


def _fill(connection: Connection, trial_id: int, template: FrozenTrial) -> None:
    write_params(connection, trial_id, template.params, template.distributions)
    _insert_attributes(connection, ATTRIBUTES, trial_id, template.user_attrs)
    _insert_attributes(connection, SYSTEM_ATTRIBUTES, trial_id, template.system_attrs)
    write_values(connection, trial_id, template.values or ())
    for step, value in template.intermediate_values.items():
        stored, its_type = to_stored(value)
        row: dict[str, Any] = {"trial_id": trial_id, "step": step}
        row |= {"intermediate_value": stored, "intermediate_value_type": its_type}
        connection.execute(INTERMEDIATE.insert().values(**row))


def write_params(
    connection: Connection, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> None:
    """All parameters of a running trial at once, none of them written before, as users see them."""
    if not params:
        return
    rows = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in params.items()
    ]
    connection.execute(PARAMS.insert(), rows)


def write_attributes(connection: Connection, trial: FrozenTrial, attributes: Attributes) -> None:
    """Attributes of a running trial, which is given with those that it had; of equal keys, these count."""
    of_kinds = (
        (ATTRIBUTES, attributes.user, trial.user_attrs),
        (SYSTEM_ATTRIBUTES, attributes.system, trial.system_attrs),
    )
    for table, given, known in of_kinds:
        changed = {key: value for key, value in given.items() if key not in known or known[key] != value}
        replaced = [key for key in changed if key in known]
        if replaced:
            connection.execute(table.delete().where(table.c.trial_id == trial._trial_id, table.c.key.in_(replaced)))
        _insert_attributes(connection, table, trial._trial_id, changed)


def _insert_attributes(connection: Connection, table: Table, trial_id: int, attributes: Mapping[str, Any]) -> None:
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]
    if rows:
        connection.execute(table.insert(), rows)


def finish_trial(connection: Connection, trial_id: int, values: Sequence[float] | None) -> bool:
    """Tell a running trial: complete with ``values`` (one per objective), or failed when there are none.

    Returns False, changing nothing, when the trial was told already.
    """
    state = TrialState.FAIL if values is None else TrialState.COMPLETE
    changed = connection.execute(
        TRIALS.update()
        .where(TRIALS.c.trial_id == trial_id, TRIALS.c.state == TrialState.RUNNING)
        .values(state=state, datetime_complete=utc_now())
    )
    if changed.rowcount == 0:
        return False
    write_values(connection, trial_id, values or ())
    return True


def write_values(connection: Connection, trial_id: int, values: Sequence[float]) -> None:
    """What a trial was told, one number per objective."""
    rows = []
    for objective, value in enumerate(values):
        stored, kind = to_stored(float(value))
        rows.append({"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind})
    if rows:
        connection.execute(VALUES.insert(), rows)


def widen_texts(connection: Connection) -> None:
    """On MariaDB, room for long values, such as the space of a merge layer by layer; elsewhere there is.

    Optuna's columns take 64 kB there. A column that is wide already is left alone.
    """
    query = sql(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = database() AND data_type = 'text'"
    )
    names = {table.name for table in _all_tables()}
    for table, column in connection.execute(query).all():
        if table in names:
            connection.execute(sql(f"ALTER TABLE {table} MODIFY {column} LONGTEXT"))


def delete_study(connection: Connection, study_id: int) -> None:
    """Everything that Optuna keeps of a study, in the caller's transaction."""
    trial_ids = TRIALS.select().with_only_columns(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    tables = _all_tables()[::-1]
    for table in tables:
        if table.name != "trials" and "trial_id" in table.c:
            connection.execute(table.delete().where(table.c.trial_id.in_(trial_ids)))
    for table in tables:
        if "study_id" in table.c:
            connection.execute(table.delete().where(table.c.study_id == study_id))


def rename_study(connection: Connection, study_id: int, name: str) -> None:
    """Give a study another name, in the caller's transaction."""
    connection.execute(STUDIES.update().where(STUDIES.c.study_id == study_id).values(study_name=name))


def _all_tables() -> list[Table]:
    """All of Optuna's tables, as Optuna defines them, those first that others refer to."""
    from optuna.storages._rdb import models

    return list(models.BaseModel.metadata.sorted_tables)
