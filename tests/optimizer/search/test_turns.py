"""Workers that ask at the same moment would spend their evaluations on one and the same point."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest
from sqlalchemy import select

import mergefront as mf
from mergefront.optimizer.scores.evaluation import FunctionEvaluator
from mergefront.running.worker import work
from mergefront.storage.ledger import StudyLedger
from mergefront.storage.schema import claims

NAMES = ("a", "b", "c")
SPACE = mf.MergeSpace(list(NAMES), method="task_arithmetic", parameters={"weight": [0, 1]})
TOLD, AT_ONCE = 10, 3


def scores(recipe: mf.Recipe) -> dict[str, float]:
    a, b, c = (float(recipe.params[f"weight[{name}]"]) for name in NAMES)
    return {"x": -((a - 0.7) ** 2) - (b - 0.2) ** 2 - (c - 0.2) ** 2, "y": -((a - 0.2) ** 2) - (b - 0.7) ** 2 - c**2}


def study_in(url: str, name: str) -> mf.Study:
    return mf.search(
        space=SPACE, evaluate=scores, objectives=["x", "y"], evaluations=TOLD, storage=url, name=name, progress=False
    )


def asked(study: mf.Study) -> tuple[int, tuple[float, ...]]:
    found = study.ask()
    assert found is not None
    return found.trial, tuple(float(found.recipe.params[f"weight[{name}]"]) for name in NAMES)


def with_room(study: mf.Study) -> mf.Study:
    study.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE mergefront_studies SET evaluations = 20")
    )
    return study.refresh()


@pytest.mark.cases(1)
def test_who_asks_at_the_same_moment_gets_what_it_would_get_in_turn(database_url: str) -> None:
    in_turn = with_room(study_in(database_url, "turn"))
    expected = [asked(in_turn) for _ in range(AT_ONCE)]
    with_room(study_in(database_url, "once"))
    # Databases, ledgers and samplers of their own, as processes have.
    studies = [mf.load_study("once", storage=database_url) for _ in range(AT_ONCE)]
    barrier = Barrier(AT_ONCE)

    def ask(study: mf.Study) -> tuple[int, tuple[float, ...]]:
        barrier.wait()
        return asked(study)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert sorted(pool.map(ask, studies)) == expected
    assert len({point for _, point in expected}) == AT_ONCE


def test_who_dies_or_is_stuck_while_it_proposes_holds_nobody_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = with_room(study_in(url, "s"))
    script = (
        "import sys, time; import mergefront as mf\n"
        "study = mf.load_study('s', storage=sys.argv[1])\n"
        "print(study.ledger.claim(20).slot, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, url], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().strip() == str(TOLD)
    mine = study.ledger.claim(20)
    assert mine is not None and mine.in_line
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(study.ledger.wait_for_turn, mine, lambda: False)
        time.sleep(0.3)
        assert not waiting.done()
        other.kill()
        other.wait()
        waiting.result(timeout=30)
    study.ledger.release(mine)
    stuck = StudyLedger(study.database, study.record.study_id, {})
    taken, behind = stuck.claim(20), study.ledger.claim(20)
    assert taken is not None and behind is not None and taken.slot == TOLD and behind.in_line
    old = claims.update().where(claims.c.slot == taken.slot).values(started=time.time() - 61)
    study.database.write(lambda connection: connection.execute(old))
    assert study.ledger.wait_for_turn(behind, lambda: False)
    kept = select(claims.c.process).where(claims.c.slot == taken.slot)
    assert study.database.read(lambda connection: connection.execute(kept).scalar()) == stuck.process


def test_one_worker_never_waits(tmp_path: Path) -> None:
    study = with_room(study_in(f"sqlite:///{tmp_path}/study.db", "s"))
    study.ask()
    study.ask()
    claim = study.ledger.claim(20)
    assert claim is not None and not claim.in_line


def test_who_is_asked_to_end_while_it_waits_gives_its_slot_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = with_room(study_in(url, "s"))
    other = StudyLedger(study.database, study.record.study_id, {})
    held = other.claim(20)
    assert held is not None
    with ThreadPoolExecutor(1) as pool:
        stopping = Event()
        waiting = pool.submit(work, "s", storage=url, evaluator=FunctionEvaluator(scores), should_stop=stopping.is_set)
        while not any(worker.trial is None for worker in study.ledger.workers()[1:]):
            time.sleep(0.02)
        stopping.set()
        waiting.result(timeout=30)
    assert [worker.trial for worker in study.ledger.workers()] == [None], "the one that is under way is left"
    taken = study.ledger.claim(20)
    assert taken is not None and (taken.slot, taken.deaths, taken.in_line) == (held.slot + 1, 0, True)
