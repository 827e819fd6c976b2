"""What a study's budget comes to before it is spent: memory and time of its processes, connections of its database.

The numbers are of docs/benchmarks/operations.md ("Beyond one machine").
"""

from __future__ import annotations

import os

from sqlalchemy import text

from mergefront.formatting import duration, size
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.storage.database import Database
from mergefront.study.preflight.findings import Findings

BYTES_OF_TRIAL, BYTES_OF_COEFFICIENT = 12_000, 300
"""What a process holds of every trial as it proposes: 17 KB with 16 coefficients (MM-MO)."""
SECONDS_OF_TRIAL = 1e-4
"""What a proposal takes longer with every trial, its reading; the models themselves know 320 trials at most."""
LARGE = 1_000_000_000
"""Bytes of a process that a user should know of."""
CONNECTIONS_OF_WORKER = 4
_MOST_CONNECTIONS = {
    "postgresql": "SELECT current_setting('max_connections')",
    "mysql": "SELECT @@max_connections",
    "mariadb": "SELECT @@max_connections",
}


def check_budget(found: Findings, space: MergeSpace, budget: int) -> None:
    """Every process that works on a study reads all its trials: refused where they fit into no memory here."""
    held = budget * (BYTES_OF_TRIAL + BYTES_OF_COEFFICIENT * space.dimension)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    described = (
        f"search.evaluations: {budget:,} trials of {space.dimension} coefficients are {size(held)} in every process"
    )
    remedy = "ask for fewer, and go on in a study of another name with warm_start, which takes over what was found"
    if held > memory:
        found.problems.append(f"{described}, and this machine has {size(memory)}; {remedy}")
    elif held > LARGE:
        later = duration(budget * SECONDS_OF_TRIAL)
        found.warnings.append(f"{described}, and a proposal takes {later} longer at the end; {remedy}")


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
