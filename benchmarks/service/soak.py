"""Many workers on one study while workers are killed and the database is restarted.

    python benchmarks/service/soak.py --workers 16 --trials 2000 --database postgresql
    python benchmarks/service/soak.py --workers 8 --trials 2000 --database sqlite       (or mysql)
    python benchmarks/service/soak.py --workers 32 --trials 1000000 --seconds 600 --restart-every 1e9

Prints one JSON object: trials, duplicates, overshoot, kills, restarts, messages that should not be there, trials a
second since every worker was at work, and what a worker spends between two evaluations, by the clock and of a core.
Exits with 1 when an invariant is broken: a trial of an evaluation that says something else, an evaluation twice, a
front that is not that of the stored evaluations. With --seconds it stops early and continues when called again
with the same --folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))

import sqlalchemy
from mysql_server import MysqlServer
from optuna.trial import FrozenTrial, TrialState
from postgres_server import PostgresServer, binaries

import mergefront as mf
from mergefront.optimizer.search.attributes import RECIPE
from mergefront.storage import schema
from mergefront.storage.database import Database

STUDY = """
study: soak
storage: {storage}
seed: 1
merge: {{method: ties, models: [a, b, c], space: {{weight: [0, 1], density: [0.1, 1]}}}}
backend: {{type: function, call: "soak_scorer:score"}}
objectives: [a, b]
search: {{sampler: {sampler}, evaluations: {trials}}}
"""
# A line per call, in one write: what was evaluated twice is seen.
SCORER = """
import os
import time
from pathlib import Path
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

def score(recipe):
    with open(Path(__file__).parent / "calls.txt", "ab", buffering=0) as calls:
        calls.write(f"{recipe.digest} {os.getpid()} {time.time()} {time.process_time()}\\n".encode())
    time.sleep(SECONDS)
    a, b = recipe.params["weight[a]"], recipe.params["weight[b]"]
    items = tuple(f"i{n}" for n in range(50))
    scores = {"a": a * (1 - b / 2), "b": b * (1 - a / 2)}
    return Evaluation(scores, {}, {k: ItemScores(items, (v,) * 50) for k, v in scores.items()}, {"total": 0.0})
"""


class Worker:
    """``mergefront worker`` in a process of its own, forked so that many start at once on a small machine."""

    def __init__(self, folder: Path, url: str, number: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                log = os.open(folder / f"worker{number}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.dup2(log, 1)
                os.dup2(log, 2)
                from mergefront.cli.application import cli

                code = cli.main(["worker", "soak", "--storage", url], "mergefront", standalone_mode=False)
                sys.stderr.flush()
            finally:
                os._exit(code)  # nothing of the parent's is closed or flushed here

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float = 1e9) -> int:
        ends = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > ends:
                self.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def finished(engine: sqlalchemy.Engine) -> int:
    query = sqlalchemy.select(sqlalchemy.func.count()).select_from(schema.claims).where(schema.claims.c.finished)
    try:
        with engine.connect() as connection:
            return int(connection.execute(query).scalar_one())
    except sqlalchemy.exc.OperationalError:
        return 0


def soak(
    arguments: argparse.Namespace, folder: Path, url: str, server: PostgresServer | MysqlServer | None
) -> dict[str, Any]:
    moments = random.Random(arguments.seed)
    (folder / "soak_scorer.py").write_text(f"SECONDS = {arguments.evaluation_seconds}\n{SCORER}")
    study_file = folder / "study.yaml"
    study_file.write_text(STUDY.format(storage=url, trials=arguments.trials, sampler=arguments.sampler))
    sys.path.insert(0, str(folder))
    if not (folder / "calls.txt").exists():
        mf.run(study_file, evaluations=1)
    from mergefront.storage.studies import load, update

    database = Database(url)
    update(database, load(database, "soak"), evaluations=arguments.trials)
    database.close()
    # No connection is open when a worker is forked.
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    started = time.monotonic()
    workers = {number: Worker(folder, url, number) for number in range(arguments.workers)}
    kills = restarts = 0
    codes: Counter[int] = Counter()
    next_kill = time.monotonic() + arguments.kill_every
    next_restart = time.monotonic() + arguments.restart_every
    done = 0
    while time.monotonic() - started < arguments.seconds:
        time.sleep(0.3)
        done = max(done, finished(engine))
        alive = [number for number, worker in workers.items() if worker.poll() is None]
        for number in set(workers) - set(alive):
            if workers[number].returncode not in (0, None):  # as a supervisor does
                codes[workers[number].returncode] += 1
                workers[number] = Worker(folder, url, number)
        if not alive and all(worker.returncode == 0 for worker in workers.values()):
            break
        now = time.monotonic()
        if now > next_kill and done < arguments.trials * 0.97:
            victim = moments.choice(alive or list(workers))
            workers[victim].send_signal(moments.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
            codes[workers[victim].wait()] += 1
            kills += 1
            workers[victim] = Worker(folder, url, victim)
            next_kill = now + arguments.kill_every * moments.uniform(0.5, 1.5)
        if server is not None and now > next_restart and done < arguments.trials * 0.97:
            server.stop(moments.choice(["fast", "immediate"]))
            time.sleep(moments.uniform(0.2, 3.0))
            server.start()
            restarts += 1
            next_restart = time.monotonic() + arguments.restart_every
    seconds = time.monotonic() - started
    for worker in workers.values():
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
    for worker in workers.values():
        codes[worker.wait(15)] += 1
    return report(folder, url, arguments) | {
        "kills": kills,
        "restarts": restarts,
        "exit_codes": {str(code): count for code, count in sorted(codes.items())},
        "seconds": round(seconds, 1),
    }


def report(folder: Path, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the database and the logs hold."""
    study = mf.load_study("soak", storage=url)
    trials = study.optuna.get_trials(deepcopy=False)
    with study.database.reading() as connection:
        claims = connection.execute(sqlalchemy.select(schema.claims)).all()
        kept = connection.execute(
            sqlalchemy.select(
                schema.evaluations.c.digest,
                schema.evaluations.c.trial_number,
                schema.evaluations.c.failure,
                schema.evaluations.c.scores,
            )
        ).all()
        scored = connection.execute(
            sqlalchemy.select(sqlalchemy.func.count()).select_from(schema.item_scores)
        ).scalar_one()
    slots = [claim.slot for claim in claims]
    logs = "".join(path.read_text(errors="replace") for path in folder.glob("worker*.log"))
    called = [line.split() for line in (folder / "calls.txt").read_text().splitlines()]
    calls = [digest for digest, *_ in called]
    states = Counter(trial.state.name for trial in trials)
    return {
        "database": arguments.database,
        "workers": arguments.workers,
        "budget": arguments.trials,
        "trials": len(trials),
        "states": dict(states),
        "finished_claims": sum(claim.finished for claim in claims),
        "duplicate_slots": len(slots) - len(set(slots)),
        "duplicate_trials_of_a_slot": len(trials) - len({trial.user_attrs["mergefront:slot"] for trial in trials}),
        "duplicate_evaluations": len(kept) - len({row.digest for row in kept}),
        "evaluations_without_trial": sum(row.trial_number is None for row in kept),
        "trials_that_say_otherwise": sum(not _is_told(trials, row) for row in kept),
        "finished_trials_without_evaluation": len(
            {trial.number for trial in trials if trial.state.is_finished()} ^ {row.trial_number for row in kept}
        ),
        "wrong_members_of_the_front": len({member.number for member in study.front()} ^ _front_of(kept)),
        "missing_item_scores": 2 * sum(row.failure is None for row in kept) - scored,
        "overshoot": max(len(slots) - arguments.trials, 0),
        "calls": len(calls),
        "calls_cut_off_and_repeated": len(calls) - len(set(calls)),
        "tracebacks": logs.count("Traceback"),
        "locked": logs.count("is locked"),
        "deadlocks": logs.lower().count("deadlock"),
        "failures": sorted({str(row.failure) for row in kept if row.failure is not None}),
        "errors": sorted({line for line in logs.splitlines() if line.startswith("Error")})[:5],
    } | _pace(called, arguments)


def _is_told(trials: list[FrozenTrial], row: Any) -> bool:
    """Whether the trial of a stored evaluation is told what it says."""
    if row.failure is not None or row.trial_number is None:
        return row.failure is not None
    trial = trials[row.trial_number]
    told = trial.state == TrialState.COMPLETE and trial.user_attrs[RECIPE] == row.digest
    return told and trial.values == [row.scores["a"], row.scores["b"]]


def _front_of(kept: list[Any]) -> set[int]:
    """The trials that no other is better than in one score and not worse in the other."""
    scored = [(row.scores["a"], row.scores["b"], row.trial_number) for row in kept if not row.failure]
    found: set[int] = set()
    best = -math.inf
    for _, same_a in itertools.groupby(sorted(scored, reverse=True), key=lambda one: one[0]):
        rows = list(same_a)
        top = rows[0][1]
        if top > best:
            found |= {number for _, b, number in rows if b == top}
            best = top
    return found


def _pace(called: list[list[str]], arguments: argparse.Namespace) -> dict[str, float]:
    """Of calls (digest, process, seconds by the clock, seconds of processor time), in order."""
    by_process: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _, process, moment, cpu in called:
        by_process[process].append((float(moment), float(cpu)))
    begun = sorted(moments[0][0] for moments in by_process.values())
    # One process made the study and its first trial; the last of the workers that were started first is at work here.
    all_at_work = begun[min(arguments.workers, len(begun) - 1)]
    ended = max(moments[-1][0] for moments in by_process.values())
    gaps, spent = [], []
    for moments in by_process.values():
        for (before, cpu_before), (after, cpu_after) in itertools.pairwise(moments):
            if before > all_at_work:
                gaps.append(after - before - arguments.evaluation_seconds)
                spent.append(cpu_after - cpu_before)
    if not gaps:
        return {}
    return {
        "trials_per_second": round(len(gaps) / (ended - all_at_work), 1),
        "between_evaluations_median_s": round(statistics.median(gaps), 3),
        "between_evaluations_p95_s": round(statistics.quantiles(gaps, n=20)[-1], 3),
        "between_evaluations_longest_s": round(max(gaps), 3),
        "cpu_between_evaluations_s": round(statistics.mean(spent), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--database", choices=["postgresql", "mysql", "sqlite"], default="postgresql")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--evaluation-seconds", type=float, default=0.0, help="how long an evaluation waits")
    parser.add_argument("--kill-every", type=float, default=4.0, help="seconds between two kills of a worker")
    parser.add_argument("--restart-every", type=float, default=20.0, help="seconds between two database restarts")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keeps the study between calls (not of MySQL)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="mergefront-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    server: PostgresServer | MysqlServer | None = None
    url = f"sqlite:///{folder.resolve()}/soak.db"
    if arguments.database == "postgresql":
        found = binaries()
        if found is None:
            parser.error("PostgreSQL is not installed")
        if arguments.folder is None:
            server = PostgresServer(found)
            url = server.new_database()
        else:
            server = PostgresServer(found, Path(f"{folder.resolve()}-server"))
            name = folder / "database.txt"
            if not name.exists():
                name.write_text(server.new_database().rpartition("/")[2])
            url = server.url(name.read_text())
    elif arguments.database == "mysql":
        server = MysqlServer()
        url = server.new_database()
    try:
        result = soak(arguments, folder.resolve(), url, server)
    finally:
        if isinstance(server, MysqlServer) or (server is not None and arguments.folder is None):
            server.remove()
        elif server is not None:
            server.stop()
    print(json.dumps(result, indent=1))
    must_be_zero = ("duplicate_slots", "duplicate_trials_of_a_slot", "duplicate_evaluations", "missing_item_scores")
    must_be_zero += ("evaluations_without_trial", "overshoot", "tracebacks", "locked", "deadlocks")
    must_be_zero += (
        "trials_that_say_otherwise",
        "finished_trials_without_evaluation",
        "wrong_members_of_the_front",
    )
    broken = [key for key in must_be_zero if result[key]]
    if broken:
        print(f"broken: {', '.join(broken)} (logs in {folder})", file=sys.stderr)
        return 1
    if arguments.folder is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
