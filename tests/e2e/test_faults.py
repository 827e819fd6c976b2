"""Full disks, read-only files, locks, clocks that jump, cuts in mid-transaction: nothing is damaged, all goes on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_study import NAME, small_study
from sqlalchemy import text

import mergefront as mf
from mergefront.storage.database import Database
from mergefront.storage.ledger import LEASE_SECONDS, StudyLedger
from mergefront.storage.schema import claims
from mergefront.storage.studies import update

LOCKED_SECONDS = float(os.environ.get("MERGEFRONT_TEST_LOCK_SECONDS", "2"))
STUDY = """
study: faulty
storage: {storage}
merge: {{method: ties, models: [a, b], space: {{weight: [0, 1]}}}}
backend: {{type: function, call: "fault_scorer:score"}}
objectives: [a]
search: {{sampler: random, evaluations: {evaluations}}}
"""
SCORER = "def score(recipe):\n    return {'a': recipe.params['weight[a]']}\n"


def write_study(folder: Path, url: str, evaluations: int) -> Path:
    (folder / "fault_scorer.py").write_text(SCORER)
    path = folder / "study.yaml"
    path.write_text(STUDY.format(storage=url, evaluations=evaluations))
    return path


def run(path: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mergefront", "run", path.name],
        cwd=path.parent,
        preexec_fn=before,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def is_sound(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        return connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.long
def test_a_full_disk_stops_the_search_and_room_lets_it_go_on(tmp_path: Path) -> None:
    path = write_study(tmp_path, "sqlite:///study.db", 60)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    stopped = run(path, small_files)
    assert stopped.returncode == 1, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "free some space" in stopped.stderr and "Continue with" in stopped.stderr
    assert is_sound(tmp_path / "study.db")
    done = mf.load_study("faulty", storage=f"sqlite:///{tmp_path}/study.db").finished_count()
    assert 0 < done < 60
    assert run(path).returncode == 0
    study = mf.load_study("faulty", storage=f"sqlite:///{tmp_path}/study.db")
    assert study.finished_count() == 60
    assert [trial.number for trial in study.optuna.get_trials(deepcopy=False)] == list(range(60))


def test_a_read_only_database_is_refused_in_words(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    small_study(url, 6).database.close()
    before = (tmp_path / "study.db").read_bytes()
    database = Database(url)

    # A user without the right to write, also where the tests run as root.
    def ask_sqlite_to_refuse() -> None:
        with database.engine.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA query_only=ON")  # type: ignore[union-attr]

    ask_sqlite_to_refuse()
    with pytest.raises(mf.MergefrontError, match="make the file and its folder writable"), database.transaction() as c:
        c.execute(claims.update().values(deaths=9))
    database.close()
    assert (tmp_path / "study.db").read_bytes() == before
    assert small_study(url, 8).finished_count() == 8


@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    small_study(url, 6).database.close()
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]
    (tmp_path / "study.db").chmod(0o444)
    tmp_path.chmod(0o555)
    without_privilege = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    command = [*without_privilege, sys.executable, "-m", "mergefront", "status", NAME, "--storage", url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    tmp_path.chmod(0o755)
    assert said.returncode == 2 and "make the file and its folder writable" in said.stderr, said


@pytest.mark.cases(1)
def test_a_lock_is_waited_for(database_url: str) -> None:
    study = small_study(database_url, 6)
    other = Database(database_url)
    locked, done = threading.Event(), threading.Event()

    statements = {
        "sqlite": "SELECT 1",  # its transactions have the write lock from the start
        "postgresql": "LOCK TABLE trials, mergefront_claims IN ACCESS EXCLUSIVE MODE",
        "mysql": "SELECT study_id FROM mergefront_studies FOR UPDATE",
    }

    def hold() -> None:
        with other.transaction() as connection:
            connection.execute(text(statements[connection.dialect.name]))
            locked.set()
            time.sleep(LOCKED_SECONDS)
        done.set()

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(60)
    assert small_study(database_url, 9).finished_count() == 9
    assert done.is_set(), "it went on before the lock was given back"
    thread.join()
    other.close()
    study.database.close()


CUT = """
import os, signal, sys
from datetime import datetime
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.storage.ledger import StudyLedger
from mergefront.storage.database import Database
from mergefront.storage.optuna_tables.tables import finish_trial
from mergefront.study.stored_study import load_study
from mergefront.optimizer.search.loop import propose
MOMENT = datetime(2026, 1, 1)
study = load_study("small", storage=sys.argv[1])
claim = study.ledger.claim(8)
proposal = propose(study.plan, study.optuna, study.ledger, claim)
with study.database.transaction(durable=True) as connection:
    assert finish_trial(connection, proposal.trial._trial_id, [0.25])
    study.ledger._keep(connection, proposal.number, proposal.recipe, Evaluation({"score": 0.25}), "search", MOMENT)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_cut_between_two_writes_leaves_neither(database_url: str) -> None:
    before = small_study(database_url, 6)
    before.database.close()
    cut = subprocess.run([sys.executable, "-c", CUT, database_url], capture_output=True, text=True, timeout=60)
    assert cut.returncode == -signal.SIGKILL, cut.stderr
    study = mf.load_study(NAME, storage=database_url)
    assert study.finished_count() == 6
    assert len(study.ledger.evaluations()) == len({candidate.digest for candidate in study.candidates()})
    assert small_study(database_url, 8).finished_count() == 8
    states = {trial.state.name for trial in study.optuna.get_trials(deepcopy=False)}
    assert states == {"COMPLETE"}, "the trial that was cut off is finished by the next one, not left behind"


class JumpingClock(Database):
    """A database whose clock is ``offset`` seconds off."""

    offset = 0.0
    running: float | None = None
    """For how many seconds its server runs, where that matters."""

    def now(self, connection: object, locking: object = None) -> tuple[float, float]:
        time_now, since = super().now(connection, locking)  # type: ignore[arg-type]
        time_now += self.offset
        return time_now, since if self.running is None else time_now - self.running


@pytest.mark.parametrize("jump", [86400.0, -86400.0])
def test_a_clock_that_jumps_takes_no_work_from_a_live_process(database_url: str, jump: float) -> None:
    study = small_study(database_url, 6)
    update(study.database, study.record, evaluations=10)
    working = StudyLedger(study.database, study.record.study_id, {})
    mine = working.claim(10)
    assert mine is not None
    jumped = JumpingClock(database_url)
    jumped.offset = jump
    other = StudyLedger(jumped, study.record.study_id, {})
    theirs = other.claim(10)
    assert theirs is not None and theirs.slot != mine.slot


@pytest.mark.parametrize("jump", [2 * LEASE_SECONDS, -86400.0])
def test_a_dead_machines_work_is_taken_over_whatever_the_clock_says(database_url: str, jump: float) -> None:
    study = small_study(database_url, 6)
    dead = StudyLedger(study.database, study.record.study_id, {})
    dead.host, dead.process = "another-machine/boot/1", "1/1/x"
    lost = dead.claim(10)
    assert lost is not None
    here = StudyLedger(study.database, study.record.study_id, {})
    fresh = here.claim(10)
    assert fresh is not None and fresh.slot != lost.slot, "its sign of life is fresh"
    jumped = JumpingClock(database_url)
    jumped.offset = jump
    with jumped.transaction() as connection:
        _, since = jumped.now(connection)
    later = StudyLedger(jumped, study.record.study_id, {})
    taken = later.claim(10)
    assert taken is not None and (taken.slot, taken.deaths) == (lost.slot, 1), since


def test_who_could_give_no_sign_of_life_while_the_server_was_down_is_not_taken_for_dead(tmp_path: Path) -> None:
    """A server that comes back after an hour would see all its workers' evaluations done twice."""
    study = small_study(f"sqlite:///{tmp_path}/study.db", 6)
    elsewhere = StudyLedger(study.database, study.record.study_id, {})
    elsewhere.host, elsewhere.process = "another-machine/boot/1", "1/1/x"
    working = elsewhere.claim(10)
    assert working is not None
    restarted = JumpingClock(study.database.url)
    restarted.offset, restarted.running = 30 * LEASE_SECONDS, 5.0
    here = StudyLedger(restarted, study.record.study_id, {})
    mine = here.claim(10)
    assert mine is not None and mine.slot != working.slot
    restarted.running = LEASE_SECONDS + 1.0
    taken = here.claim(10)
    assert taken is not None and taken.slot == working.slot


def test_who_was_taken_for_dead_gives_nothing_back_that_another_one_works_on(tmp_path: Path) -> None:
    study = small_study(f"sqlite:///{tmp_path}/study.db", 6)
    asleep = StudyLedger(study.database, study.record.study_id, {})
    asleep.host, asleep.process = "another-machine/boot/1", "1/1/x"
    lost = asleep.claim(10)
    later = JumpingClock(study.database.url)
    later.offset = 2 * LEASE_SECONDS
    other = StudyLedger(later, study.record.study_id, {})
    taken = other.claim(10)
    assert lost is not None and taken is not None and taken.slot == lost.slot
    asleep.release(lost)
    third = StudyLedger(later, study.record.study_id, {}).claim(10)
    assert third is not None and third.slot != taken.slot
