"""The one place that writes to Optuna's tables directly.

Optuna commits every parameter and attribute of a trial by itself (15 transactions for a trial of 12
parameters); a search that keeps every step durable cannot afford that. The tables are those of
Optuna's schema v3.2.0.a, which ``RDBStorage`` checks when a database is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Table
from sqlalchemy.engine import Connection

_metadata = models.BaseModel.metadata
_TRIALS = _metadata.tables["trials"]
_PARAMS = _metadata.tables["trial_params"]
_VALUES = _metadata.tables["trial_values"]
_ATTRIBUTES = _metadata.tables["trial_user_attributes"]


def write_params(
    connection: Connection, trial_id: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> None:
    """All parameters of a running trial at once; ``params`` are the values as users see them."""
    if params:
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
