"""A search whose database another program locks for half a minute: it waits, and goes on.

    python benchmarks/service/locked.py [--seconds 30]

For SQLite the file is locked for writing (its write-ahead log lets readers go on), for PostgreSQL the tables of trials,
claims and evaluations for both. Prints a JSON object per database; exits with 1 when the run fails, loses or repeats
something, or did not have to wait.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy
import yaml

import mergefront as mf

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
from postgres_server import PostgresServer, binaries

SCORER = """
import time
from pathlib import Path

def score(recipe):
    time.sleep(0.02)
    with open(Path(__file__).parent / "calls.txt", "a") as calls:
        calls.write(f"{time.time()} {recipe.digest}\\n")
    return {"a": recipe.params["weight[a]"]}
"""
EVALUATIONS = 60
TABLES = "trials, mergefront_claims, mergefront_evaluations"


@contextmanager
def locked(url: str) -> Iterator[None]:
    """While entered, nobody else can write to the database (PostgreSQL: nor read what a search needs)."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if url.startswith("sqlite"):
            connection.exec_driver_sql("BEGIN EXCLUSIVE")
        else:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql(f"LOCK TABLE {TABLES} IN ACCESS EXCLUSIVE MODE")
        yield
        connection.exec_driver_sql("COMMIT")
    engine.dispose()


def measure(folder: Path, url: str, seconds: float) -> dict[str, Any]:
    folder.mkdir()
    (folder / "lock_scorer.py").write_text(SCORER)
    content = {
        "study": "locked",
        "storage": url,
        "merge": {"method": "ties", "models": ["a", "b"], "space": {"weight": [0, 1]}},
        "backend": {"type": "function", "call": "lock_scorer:score"},
        "objectives": ["a"],
        "search": {"sampler": "random", "evaluations": EVALUATIONS},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    calls = folder / "calls.txt"
    command = [sys.executable, "-m", "mergefront", "run", "study.yaml"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("w") as log:
        run = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        while run.poll() is None and not (calls.exists() and calls.read_text().count("\n") >= 10):
            time.sleep(0.01)
        with locked(url):
            time.sleep(seconds)
        code = run.wait()
    lines = [line.split() for line in calls.read_text().splitlines()]
    moments = [float(moment) for moment, _ in lines]
    study = mf.load_study("locked", storage=url)
    said = (folder / "log.txt").read_text()
    result = {
        "database": url.partition(":")[0],
        "locked_seconds": seconds,
        "exit_code": code,
        "finished": study.finished_count(),
        "failed": len(study.failures()),
        "evaluated_twice": len(lines) - len({digest for _, digest in lines}),
        "longest_pause": round(max(later - earlier for earlier, later in pairwise(moments)), 1),
        "said": [line for line in said.splitlines() if "database" in line or "Traceback" in line or "Error" in line],
    }
    study.database.close()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mergefront-locked-") as name:
        folder = Path(name)
        results = [measure(folder / "sqlite", f"sqlite:///{folder}/study.db", arguments.seconds)]
        found = binaries()
        if found is not None:
            server = PostgresServer(found)
            try:
                results.append(measure(folder / "postgresql", server.new_database(), arguments.seconds))
            finally:
                server.remove()
    bad = 0
    for result in results:
        print(json.dumps(result))
        sound = (result["exit_code"], result["finished"], result["failed"], result["evaluated_twice"])
        bad += sound != (0, EVALUATIONS, 0, 0) or result["longest_pause"] < 0.9 * arguments.seconds
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
