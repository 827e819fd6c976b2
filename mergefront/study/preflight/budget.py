"""What a study's budget comes to before it is spent: memory and time of its processes, connections of its database.

The numbers are of docs/benchmarks/operations.md ("Beyond one machine").
"""

from __future__ import annotations

from collections.abc import Mapping

import psutil
from sqlalchemy import text

from mergefront.formatting import duration, size
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.samplers.registry import shown_to_sampler
from mergefront.storage.database import Database
from mergefront.storage.studies import MOST_EVALUATIONS
from mergefront.study.definition import StudyDefinition

BYTES_OF_TRIAL, BYTES_OF_COEFFICIENT = 12_000, 300
"""What a process holds of every trial as it proposes: 17 KB with 16 coefficients (MM-MO)."""
SECONDS_OF_TRIAL = 1e-4
"""What a proposal takes longer with every trial, its reading; the models themselves know 320 trials at most."""
BYTES_OF_ANSWER = 90
"""What a process holds of every item score that it has read: score, margin and id."""
BYTES_OF_ENTRY = 120
"""What a race's model takes for every candidate and item of a task while it is fitted, of one task at a time."""
LARGE = 1_000_000_000
"""Bytes of a process that a user should know of."""
CONNECTIONS_OF_WORKER = 4
_MOST_CONNECTIONS = {
    "postgresql": "SELECT current_setting('max_connections')",
    "mysql": "SELECT @@max_connections",
    "mariadb": "SELECT @@max_connections",
}


def checked_budget(definition: StudyDefinition, evaluations: int) -> list[str]:
    """What to know of a budget.

    Raises ``UserError`` for one that is no whole number of at least 1, and where its trials, which every process that
    works on the study reads, fit into no memory here.
    """
    is_whole = isinstance(evaluations, int) and not isinstance(evaluations, bool)
    if not is_whole or not 1 <= evaluations <= MOST_EVALUATIONS:
        raise UserError(f"evaluations is {evaluations!r}; it must be a whole number of 1 to {MOST_EVALUATIONS}")
    limited = shown_to_sampler(definition.sampler, len(definition.objectives), evaluations)
    told = [] if limited is None else [f"search: {limited}"]
    coefficients = definition.space.dimension
    held = evaluations * (BYTES_OF_TRIAL + BYTES_OF_COEFFICIENT * coefficients)
    memory = psutil.virtual_memory().total
    described = (
        f"search.evaluations: {evaluations:,} trials of {coefficients} coefficients are {size(held)} in every process"
    )
    remedy = "ask for fewer, and go on in a study of another name with warm_start, which takes over what was found"
    if held > memory:
        raise UserError(f"{described}, and this machine has {size(memory)}; {remedy}")
    if held > LARGE:
        later = duration(evaluations * SECONDS_OF_TRIAL)
        told.append(f"{described}, and a proposal takes {later} longer at the end; {remedy}")
    return told


def checked_item_scores(definition: StudyDefinition, evaluations: int, items: Mapping[str, int]) -> list[str]:
    """What to know of the scores of so many search ``items`` by task.

    Raises ``UserError`` where a race, each of whose processes reads them all, fits into no memory here.
    """
    total, racing = sum(items.values()), definition.racing
    share = total if racing is None else sum(racing.share(count) for count in items.values())
    held = evaluations * share * BYTES_OF_ANSWER
    if racing is not None:
        held += evaluations * max(items.values(), default=0) * BYTES_OF_ENTRY
    described = f"{evaluations:,} evaluations of {total:,} search items are {size(held)} of item scores"
    memory = psutil.virtual_memory().total
    if racing is not None and held > memory:
        raise UserError(
            f"racing: {described} in every process, and this machine has {size(memory)}; give the tasks fewer items, "
            "or the search fewer evaluations"
        )
    if held <= LARGE:
        return []
    where = "every process" if racing is not None else "a process that compares all of them item by item"
    return [f"tasks: {described} in {where}; give the tasks fewer items where memory is short"]


def connections(database: Database) -> str | None:
    """How many workers a database server takes; None of a file."""
    query = _MOST_CONNECTIONS.get(database.engine.dialect.name)
    if query is None:
        return None
    most = database.read(lambda connection: int(connection.execute(text(query)).scalar_one()))
    return (
        f"the database takes {most} connections, those of {most // CONNECTIONS_OF_WORKER} workers; raise "
        "max_connections for more"
    )
