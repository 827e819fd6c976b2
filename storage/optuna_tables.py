"""The one place that reads and writes Optuna's tables directly.

Optuna commits every parameter and attribute of a trial by itself (15 transactions for a trial of 12
parameters), and builds an object for every row that it reads (8 seconds for 10,000 trials); a search that
keeps every step durable and resumes at once cannot afford either. The tables are those of
Optuna's schema v3.2.0.a, which ``RDBStorage`` checks when a database is opened.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Select, Table, and_, select
from sqlalchemy.engine import Connection

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
    wanted = _TRIALS.c.trial_id > after
    if included and after >= 0:
        few = len(included) <= _LONGEST_LIST
        wanted |= _TRIALS.c.trial_id.in_(list(included)) if few else _TRIALS.c.trial_id >= min(included)
    chosen = and_(_TRIALS.c.study_id == study_id, wanted)
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
    known: dict[str, BaseDistribution] = {}
    columns = (_PARAMS.c.trial_id, _PARAMS.c.param_name, _PARAMS.c.param_value, _PARAMS.c.distribution_json)
    found = connection.execute(select(*columns).where(_PARAMS.c.trial_id.in_(ids)).order_by(_PARAMS.c.param_id))
    for trial_id, name, value, text in found:
        if trial_id not in params:
            continue  # made between two statements of a database that shows each its own moment
        distribution = known.get(text)
        if distribution is None:
            distribution = known[text] = json_to_distribution(text)
        params[trial_id][name] = distribution.to_external_repr(value)
        distributions[trial_id][name] = distribution
    values: dict[int, dict[int, float]] = {}
    to_value = models.TrialValueModel.stored_repr_to_value
    for row in connection.execute(select(_VALUES).where(_VALUES.c.trial_id.in_(ids))):
        values.setdefault(row.trial_id, {})[row.objective] = to_value(row.value, row.value_type)
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
            values=_in_order(values.get(row.trial_id)),
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


def _in_order(values: dict[int, float] | None) -> list[float] | None:
    return None if values is None else [values[index] for index in sorted(values)]


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
    """All parameters of a running trial at once; ``params`` are the values as users see them."""
    if params:
        # A repeated transaction may find them written.
        connection.execute(
            _PARAMS.delete().where(_PARAMS.c.trial_id == trial_id, _PARAMS.c.param_name.in_(list(params)))
        )
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
        .values(state=state, datetime_complete=datetime.now(UTC).replace(tzinfo=None))
    )
    if changed.rowcount == 0:
        return False
    for objective, value in enumerate(values or ()):
        finite = models.TrialValueModel.TrialValueType.FINITE
        row = {"trial_id": trial_id, "objective": objective, "value": float(value), "value_type": finite}
        connection.execute(_VALUES.insert().values(**row))
    return True


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
