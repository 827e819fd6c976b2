"""A database that goes away for a moment costs time, never an evaluation, and nothing is done twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from small_study import small_study

import mergefront as mf
from mergefront.optimizer.errors import StorageError
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses
from mergefront.storage.retry import TransientError, is_transient, retry_transient
from mergefront.storage.workers.heartbeat import Heartbeat

if TYPE_CHECKING:
    from postgres_server import PostgresServer


def test_only_faults_that_go_away_are_waited_out() -> None:
    calls = []

    def fails(error: Exception) -> None:
        calls.append(error)
        raise error

    with pytest.raises(StorageError):
        retry_transient(lambda: fails(StorageError("disk full")))
    assert len(calls) == 1
    begun = time.monotonic()
    with pytest.raises(TransientError):
        retry_transient(lambda: fails(TransientError("restarting")), 0.4)
    assert len(calls) > 2 and time.monotonic() - begun < 5
    assert not is_transient(ValueError("no database at all"))
    syntax = sqlalchemy.exc.OperationalError("SELEC 1", {}, Exception('near "SELEC": syntax error'))
    assert not is_transient(syntax)


@pytest.mark.parametrize(("code", "passes"), [(sqlite3.SQLITE_BUSY_SNAPSHOT, True), (sqlite3.SQLITE_FULL, False)])
def test_sqlite_faults_are_told_apart_by_code(code: int, passes: bool) -> None:
    raised = sqlite3.OperationalError("what it says does not count, not even: is locked")
    raised.sqlite_errorcode = code
    assert is_transient(raised) == passes
    assert is_transient(sqlalchemy.exc.OperationalError("SELECT 1", {}, raised)) == passes


@pytest.mark.parametrize(("state", "passes"), [(None, True), ("57P01", True), ("42601", False)])
def test_postgresql_faults_are_told_apart_by_sqlstate(state: str | None, passes: bool) -> None:
    class Raised(Exception):
        sqlstate = state

    assert is_transient(sqlalchemy.exc.OperationalError("SELECT 1", {}, Raised())) == passes


def test_it_succeeds_as_soon_as_the_database_is_back() -> None:
    left = [TransientError("away"), TransientError("away")]

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    assert retry_transient(action) == "done"


@pytest.mark.long
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_search_outlasts_restarts_of_its_server(postgres: PostgresServer, mode: str) -> None:
    url = postgres.new_database()
    seen: list[str] = []

    one_at_a_time = threading.Lock()  # the search goes on before pg_ctl has seen that the server is back

    def restart() -> None:
        with one_at_a_time:
            postgres.stop(mode)
            time.sleep(0.5)
            postgres.start()

    def score(recipe: mf.Recipe) -> float:
        seen.append(recipe.digest)
        if len(seen) in (4, 9):
            restart()
        elif len(seen) == 7:  # while the search talks to it
            threading.Thread(target=restart).start()
        return float(recipe.params["weight[a]"])

    study = mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties"),
        evaluate=score,
        objectives=["score"],
        sampler="random",
        evaluations=16,
        storage=url,
        name="restarted",
    )
    trials = study.optuna.get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(16))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert len(seen) == len(set(seen)), "no recipe is evaluated twice"


@pytest.mark.long
def test_what_is_read_and_what_servers_answered_waits_for_the_database(postgres: PostgresServer) -> None:
    study = small_study(postgres.new_database(), 6)
    responses = DatabaseResponses(study.database)

    def after_a_crash(action: Callable[[], object]) -> object:
        postgres.stop("immediate")
        back = threading.Timer(0.5, postgres.start)
        back.start()
        try:
            return action()
        finally:
            back.join()

    assert len(after_a_crash(study.candidates)) == 6  # type: ignore[arg-type]
    after_a_crash(lambda: responses.keep("key", "server", "an answer that was paid for", (1, 2, 3)))
    assert after_a_crash(lambda: responses.find("key")) == "an answer that was paid for"
    assert after_a_crash(lambda: responses.spent("server")) == (1, 2, 3)


def test_a_commit_whose_answer_got_lost_makes_no_second_trial(database_url: str) -> None:
    """The first try is committed, and its connection is lost before the answer comes."""
    study = small_study(database_url, 3)

    class LosesOneAnswer(type(study.database.optuna_storage)):  # type: ignore[misc]
        lost = False

        def _made_trial(self, study_id: int, template: object) -> object:
            made = super()._made_trial(study_id, template)
            if not self.lost:
                self.lost = True
                raise TransientError("the connection is gone")
            return made

    from optuna.trial import TrialState, create_trial

    database = Database(database_url)
    storage = database.optuna_storage
    storage.__class__ = LosesOneAnswer
    template = create_trial(state=TrialState.RUNNING, user_attrs={"mergefront:slot": 3})
    made = storage.create_new_trial(study.record.study_id, template)
    trials = storage.get_all_trials(study.record.study_id)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[-1]._trial_id == made


def test_signs_of_life_go_on_after_a_fault_and_stop_with_the_work() -> None:
    beats: list[int] = []
    beaten = threading.Event()

    def beat(slot: int) -> None:
        beats.append(slot)
        if len(beats) >= 4:
            beaten.set()
        if len(beats) == 2:
            raise StorageError("away")

    heart = Heartbeat(beat, 0.01)
    heart.add(1)
    heart.add(2)
    assert beaten.wait(10)
    heart.remove(1)
    heart.remove(2)
    time.sleep(0.1)
    count = len(beats)
    time.sleep(0.1)
    assert len(beats) == count and set(beats) == {1, 2}
