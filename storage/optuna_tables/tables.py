"""The one place that reads and writes Optuna's tables directly.

Optuna commits every parameter and attribute of a trial by itself (15 transactions for a trial of 12
parameters), and builds an object for every row that it reads (8 seconds for 10,000 trials); a search that
keeps every step durable and resumes at once cannot afford either. The tables are those of
Optuna's schema v3.2.0.a, which ``RDBStorage`` checks when a database is opened.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Select, Table, and_, func, select
from sqlalchemy import text as sql
from sqlalchemy.engine import Connection

from mergefront.storage.schema import utc_now

_metadata = models.BaseModel.metadata
_TRIALS = _metadata.tables["trials"]
_PARAMS = _metadata.tables["trial_params"]
_VALUES = _metadata.tables["trial_values"]
_ATTRIBUTES = _metadata.tables["trial_user_attributes"]


_SYSTEM_ATTRIBUTES = _metadata.tables["trial_system_attributes"]
_INTERMEDIATE = _metadata.tables["trial_intermediate_values"]
_LONGEST_LIST = 500  # databases limit the number of values in a statement


def read_trials(connection: Connection, study_id: int, included: Collection[int], after: int) -> list[FrozenTrial]:
    """A study's trials with an id above ``after`` or among ``included``, by id."""
    wanted: ColumnElement[bool] = _TRIALS.c.trial_id > after
    if included and after >= 0:
        few = len(included) <= _LONGEST_LIST
        wanted |= _TRIALS.c.trial_id.in_(list(included)) if few else _TRIALS.c.trial_id >= min(included)
    return _read_trials(connection, and_(_TRIALS.c.study_id == study_id, wanted))


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial:
    """One trial; raises ``KeyError`` for an unknown id."""
    found = _read_trials(connection, _TRIALS.c.trial_id == trial_id)
    if not found:
        raise KeyError(f"there is no trial with the id {trial_id}")
    return found[0]


def create_trial(connection: Connection, study_id: int, template: FrozenTrial | None) -> FrozenTrial:
    """A new trial, running unless ``template`` says otherwise, with everything that ``template`` holds.

    Optuna numbers a study's trials by counting them, so only one may be made at a time.
    """
    studies = _metadata.tables["studies"]
    connection.execute(select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()).one()
    number = connection.execute(
        select(func.count()).select_from(_TRIALS).where(_TRIALS.c.study_id == study_id)
    ).scalar()
    started = utc_now()
    row: dict[str, Any] = {"study_id": study_id, "number": number, "state": TrialState.RUNNING}
    if template is None:
        row["datetime_start"] = started
    else:
        row |= {"state": template.state, "datetime_complete": template.datetime_complete}
        row["datetime_start"] = template.datetime_start or (None if template.state == TrialState.WAITING else started)
    key = connection.execute(_TRIALS.insert().values(**row)).inserted_primary_key
    assert key is not None
    trial_id = int(key[0])
    if template is None:
        return read_trial(connection, trial_id)
    _fill(connection, trial_id, template)
    made = copy.deepcopy(template)
    made.number, made._trial_id, made.datetime_start = int(number or 0), trial_id, row["datetime_start"]
    return made


def _fill(connection: Connection, trial_id: int, template: FrozenTrial) -> None:
    write_params(connection, trial_id, template.params, template.distributions)
    for table, attributes in ((_ATTRIBUTES, template.user_attrs), (_SYSTEM_ATTRIBUTES, template.system_attrs)):
        if attributes:
            rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(attributes[key])} for key in attributes]
            connection.execute(table.insert(), rows)
    for objective, value in enumerate(template.values or ()):
        stored, kind = models.TrialValueModel.value_to_stored_repr(value)
        row: dict[str, Any] = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
        connection.execute(_VALUES.insert().values(**row))
    for step, value in template.intermediate_values.items():
        stored, its_type = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        row = {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": its_type}
        connection.execute(_INTERMEDIATE.insert().values(**row))


def _read_trials(connection: Connection, chosen: ColumnElement[bool]) -> list[FrozenTrial]:
    rows = connection.execute(
        select(
            _TRIALS.c.trial_id, _TRIALS.c.number, _TRIALS.c.state, _TRIALS.c.datetime_start, _TRIALS.c.datetime_complete
        )
        .where(chosen)
        .order_by(_TRIALS.c.trial_id)
    ).all()
    if not rows:
        return []
    ids = select(_TRIALS.c.trial_id).where(chosen)
    params: dict[int, dict[str, Any]] = {row.trial_id: {} for row in rows}
    distributions: dict[int, dict[str, BaseDistribution]] = {row.trial_id: {} for row in rows}
    to_distribution = cache(json_to_distribution)  # most trials share their distributions
    columns = (_PARAMS.c.trial_id, _PARAMS.c.param_name, _PARAMS.c.param_value, _PARAMS.c.distribution_json)
    found = connection.execute(select(*columns).where(_PARAMS.c.trial_id.in_(ids)).order_by(_PARAMS.c.param_id))
    for trial_id, name, value, text in found:
        if trial_id not in params:
            continue  # made between two statements of a database that shows each its own moment
        distributions[trial_id][name] = to_distribution(text)
        params[trial_id][name] = distributions[trial_id][name].to_external_repr(value)
    values: dict[int, list[float]] = {}
    to_value = models.TrialValueModel.stored_repr_to_value
    for row in connection.execute(select(_VALUES).where(_VALUES.c.trial_id.in_(ids)).order_by(_VALUES.c.objective)):
        values.setdefault(row.trial_id, []).append(to_value(row.value, row.value_type))
    user, system = (_attributes_of(connection, table, ids) for table in (_ATTRIBUTES, _SYSTEM_ATTRIBUTES))
    intermediate: dict[int, dict[int, float]] = {}
    to_intermediate = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value
    for row in connection.execute(select(_INTERMEDIATE).where(_INTERMEDIATE.c.trial_id.in_(ids))):
        stored = to_intermediate(row.intermediate_value, row.intermediate_value_type)
        intermediate.setdefault(row.trial_id, {})[row.step] = stored
    return [
        FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=values.get(row.trial_id),
            datetime_start=row.datetime_start,
            datetime_complete=row.datetime_complete,
            params=params[row.trial_id],
            distributions=distributions[row.trial_id],
            user_attrs=user.get(row.trial_id, {}),
            system_attrs=system.get(row.trial_id, {}),
            intermediate_values=intermediate.get(row.trial_id, {}),
            trial_id=row.trial_id,
        )
        for row in rows
    ]


def _attributes_of(connection: Connection, table: Table, ids: Select[Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    rows = connection.execute(
        select(table.c.trial_id, table.c.key, table.c.value_json).where(table.c.trial_id.in_(ids))
    )
    for trial_id, key, text in rows:
        found.setdefault(trial_id, {})[key] = json.loads(text)
    return found


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
    connection.execute(_PARAMS.insert(), rows)


def write_user_attributes(connection: Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """User attributes of a running trial; what is there under the same key is replaced."""
    if not attributes:
        return
    keys = list(attributes)
    connection.execute(_ATTRIBUTES.delete().where(_ATTRIBUTES.c.trial_id == trial_id, _ATTRIBUTES.c.key.in_(keys)))
    rows = [{"trial_id": trial_id, "key": key, "value_json": json.dumps(attributes[key])} for key in keys]
    connection.execute(_ATTRIBUTES.insert(), rows)


def finish_trial(connection: Connection, trial_id: int, values: Sequence[float] | None) -> bool:
    """Tell a running trial: complete with ``values`` (one per objective), or failed when there are none.

    Returns False, changing nothing, when the trial was told already.
    """
    state = TrialState.FAIL if values is None else TrialState.COMPLETE
    changed = connection.execute(
        _TRIALS.update()
        .where(_TRIALS.c.trial_id == trial_id, _TRIALS.c.state == TrialState.RUNNING)
        .values(state=state, datetime_complete=utc_now())
    )
    if changed.rowcount == 0:
        return False
    finite = models.TrialValueModel.TrialValueType.FINITE
    for objective, value in enumerate(values or ()):
        row = {"trial_id": trial_id, "objective": objective, "value": float(value), "value_type": finite}
        connection.execute(_VALUES.insert().values(**row))
    return True


def widen_texts(connection: Connection) -> None:
    """On MariaDB, room for long values, such as the space of a merge layer by layer; elsewhere there is.

    Optuna's columns take 64 kB there. A column that is wide already is left alone.
    """
    query = sql(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = database() AND data_type = 'text'"
    )
    names = {table.name for table in _metadata.sorted_tables}
    for table, column in connection.execute(query).all():
        if table in names:
            connection.execute(sql(f"ALTER TABLE {table} MODIFY {column} LONGTEXT"))


def delete_study(connection: Connection, study_id: int) -> None:
    """Everything that Optuna keeps of a study, in the caller's transaction."""
    trial_ids = _TRIALS.select().with_only_columns(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id)
    tables: list[Table] = list(reversed(_metadata.sorted_tables))
    for table in tables:
        if table.name != "trials" and "trial_id" in table.c:
            connection.execute(table.delete().where(table.c.trial_id.in_(trial_ids)))
    for table in tables:
        if "study_id" in table.c:
            connection.execute(table.delete().where(table.c.study_id == study_id))


def rename_study(connection: Connection, study_id: int, name: str) -> None:
    """Give a study another name, in the caller's transaction."""
    studies = _metadata.tables["studies"]
    connection.execute(studies.update().where(studies.c.study_id == study_id).values(study_name=name))
