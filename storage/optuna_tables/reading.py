"""Reading Optuna's tables directly.

Optuna builds an object for every row that it reads (8 seconds for 10,000 trials), and asks each table by itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from operator import attrgetter
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import ColumnElement, Select, and_, case, exists, literal, null, select, union_all
from sqlalchemy.engine import Connection

from mergefront.storage.optuna_tables.schema import (
    ABOVE,
    ATTRIBUTES,
    ATTRIBUTES_OF_STUDIES,
    BELOW,
    DIRECTIONS,
    FINITE,
    INTERMEDIATE,
    PARAMS,
    REVISION,
    REVISIONS,
    STUDIES,
    SYSTEM_ATTRIBUTES,
    TRIALS,
    VALUES,
    from_stored,
    is_known,
)

_LONGEST_LIST = 500  # databases limit the number of values in a statement
_TYPES = (FINITE, ABOVE, BELOW)
_PARAM, _USER, _SYSTEM = range(3, 6)
"""Kinds of what a trial holds, beside values of the three types."""


def are_current(connection: Connection) -> bool:
    """Whether Optuna's tables, which are there, are those of the installed version, as far as can be told at once."""
    return is_known() and list(connection.execute(select(REVISIONS.c.version_num)).scalars()) == [REVISION]


def study_id_of(connection: Connection, name: str) -> int:
    """Raises ``KeyError`` for an unknown name."""
    found = connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).scalar()
    if found is None:
        raise KeyError(f"there is no study of the name {name!r}")
    return int(found)


def study_name_of(connection: Connection, study_id: int) -> str:
    """Raises ``KeyError`` for an unknown id."""
    found = connection.execute(select(STUDIES.c.study_name).where(STUDIES.c.study_id == study_id)).scalar()
    if found is None:
        raise KeyError(f"there is no study with the id {study_id}")
    return str(found)


def read_directions(connection: Connection, study_id: int) -> list[StudyDirection]:
    """Of every objective; raises ``KeyError`` for an unknown id."""
    query = select(DIRECTIONS.c.direction).where(DIRECTIONS.c.study_id == study_id).order_by(DIRECTIONS.c.objective)
    found = list(connection.execute(query).scalars())
    if not found:
        raise KeyError(f"there is no study with the id {study_id}")
    return found


def read_study_attributes(connection: Connection, study_id: int, kind: str) -> dict[str, Any]:
    """A study's attributes of a ``kind`` ("user", "system"); raises ``KeyError`` for an unknown id."""
    table = ATTRIBUTES_OF_STUDIES[kind]
    found = connection.execute(select(table.c.key, table.c.value_json).where(table.c.study_id == study_id)).all()
    if not found:
        study_name_of(connection, study_id)
    return {key: json.loads(text) for key, text in found}


def read_trials(connection: Connection, study_id: int, included: Collection[int], after: int) -> list[FrozenTrial]:
    """A study's trials with an id above ``after`` or among ``included``, by id."""
    wanted: ColumnElement[bool] = TRIALS.c.trial_id > after
    if included and after >= 0:
        few = len(included) <= _LONGEST_LIST
        wanted |= TRIALS.c.trial_id.in_(list(included)) if few else TRIALS.c.trial_id >= min(included)
    return _read_trials(connection, and_(TRIALS.c.study_id == study_id, wanted))


def read_trial(connection: Connection, trial_id: int) -> FrozenTrial:
    """One trial; raises ``KeyError`` for an unknown id."""
    found = _read_trials(connection, TRIALS.c.trial_id == trial_id)
    if not found:
        raise KeyError(f"there is no trial with the id {trial_id}")
    return found[0]


def _read_trials(connection: Connection, chosen: ColumnElement[bool]) -> list[FrozenTrial]:
    """In two statements, and one more where a trial has intermediate values, which no search of ours writes."""
    rows = connection.execute(
        select(
            TRIALS.c.trial_id,
            TRIALS.c.number,
            TRIALS.c.state,
            TRIALS.c.datetime_start,
            TRIALS.c.datetime_complete,
            exists().where(INTERMEDIATE.c.trial_id == TRIALS.c.trial_id).label("has_steps"),
        )
        .where(chosen)
        .order_by(TRIALS.c.trial_id)
    ).all()
    if not rows:
        return []
    ids = select(TRIALS.c.trial_id).where(chosen)
    made = {
        row.trial_id: FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=None,
            datetime_start=row.datetime_start,
            datetime_complete=row.datetime_complete,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=row.trial_id,
        )
        for row in rows
    }
    _read_content(connection, ids, made)
    if any(row.has_steps for row in rows):
        _read_intermediate(connection, ids, made)
    return list(made.values())


def _read_content(connection: Connection, ids: Select[Any], trials: dict[int, FrozenTrial]) -> None:
    """Parameters, values and attributes: a row each, of the kind that it says."""
    params = select(
        PARAMS.c.trial_id,
        literal(_PARAM).label("kind"),
        PARAMS.c.param_name.label("name"),
        PARAMS.c.param_id.label("place"),
        PARAMS.c.param_value.label("number"),
        PARAMS.c.distribution_json.label("text"),
    ).where(PARAMS.c.trial_id.in_(ids))
    its_type = case(*((VALUES.c.value_type == one, place) for place, one in enumerate(_TYPES)))
    values = select(VALUES.c.trial_id, its_type, null(), VALUES.c.objective, VALUES.c.value, null())
    attributes = [
        select(table.c.trial_id, literal(kind), table.c.key, literal(0), null(), table.c.value_json).where(
            table.c.trial_id.in_(ids)
        )
        for kind, table in ((_USER, ATTRIBUTES), (_SYSTEM, SYSTEM_ATTRIBUTES))
    ]
    to_distribution = cache(json_to_distribution)  # most trials share their distributions
    told: dict[int, list[float]] = {}
    rows = connection.execute(union_all(params, values.where(VALUES.c.trial_id.in_(ids)), *attributes)).all()
    for trial_id, kind, name, _, number, text in sorted(rows, key=attrgetter("place")):
        trial = trials.get(trial_id)
        if trial is None:
            continue  # made between two statements of a database that shows each its own moment
        if kind == _PARAM:
            distribution = trial._distributions[name] = to_distribution(text)
            trial._params[name] = distribution.to_external_repr(number)
        elif kind == _USER:
            trial._user_attrs[name] = json.loads(text)
        elif kind == _SYSTEM:
            trial._system_attrs[name] = json.loads(text)
        else:
            told.setdefault(trial_id, []).append(from_stored(number, _TYPES[kind]))
    for trial_id, found in told.items():
        trials[trial_id].values = found


def _read_intermediate(connection: Connection, ids: Select[Any], trials: dict[int, FrozenTrial]) -> None:
    for row in connection.execute(select(INTERMEDIATE).where(INTERMEDIATE.c.trial_id.in_(ids))):
        if row.trial_id in trials:
            stored = from_stored(row.intermediate_value, row.intermediate_value_type)
            trials[row.trial_id].intermediate_values[row.step] = stored
