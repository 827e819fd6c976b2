"""What finished is kept, exactly, and no slot of the budget is worked on twice or lost."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.storage.database import Database
from mergefront.storage.ledger import StudyLedger
from mergefront.storage.studies import create_or_load
from mergefront.storage.workers.processes import process_identity

MODELS = {"maths": "m", "french": "f"}


def ledger_in(url: str) -> StudyLedger:
    database = Database(url)
    record = create_or_load(
        database, "study", {"space": 1}, [Objective("maths")], root=".", evaluations=10, versions={}
    )
    return StudyLedger(database, record.study_id, {"mergefront": "0"})


def recipe_at(weight: float) -> Recipe:
    return Recipe("ties", MODELS, {"weight[maths]": weight, "weight[french]": 0.1}, "base")


def test_evaluation_comes_back_to_the_last_bit(database_url: str) -> None:
    ledger = ledger_in(database_url)
    evaluation = Evaluation(
        {"maths": 0.1 + 0.2},
        {"maths": 1 / 3},
        {
            "maths": ItemScores(("a", "b"), (0.1, 1.0), (-1e-17, 3.0)),
            "long": ItemScores(tuple(f"item {number}" for number in range(10_000)), (1 / 3,) * 10_000),
        },
        {"merge": 0.5},
        {"items": 2},
        {"note": "ü 🙂", "second": 1, "a first": float("inf")},
    )
    ledger.record(recipe_at(0.5), evaluation, "search")
    assert ledger_in(database_url).find(recipe_at(0.5)) == evaluation
    assert ledger.find(recipe_at(0.5 + 2**-53)) is None, "a recipe that differs in the last bit is another recipe"


def test_budget_is_never_overshot_by_threads_claiming_at_once(database_url: str) -> None:
    ledgers = [ledger_in(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        rounds = [list(pool.map(lambda ledger: ledger.claim(10), ledgers)) for _ in range(4)]
    slots = [claim.slot for claims in rounds for claim in claims if claim is not None]
    assert sorted(slots) == list(range(10))


def test_slot_of_a_killed_process_is_taken_over_and_a_live_ones_is_not(database_url: str) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from test_ledger import ledger_in\n"
        "ledger = ledger_in(sys.argv[1]); claim = ledger.claim(10)\n"
        "ledger._update(ledger._slot(claim.slot), trial_number=7)\n"
        "print(claim.slot, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, database_url, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline().strip() == "0"
    ledger = ledger_in(database_url)
    mine = ledger.claim(10)
    assert mine is not None and mine.slot == 1
    other.kill()
    other.wait()
    taken = ledger.claim(10)
    assert taken is not None
    assert (taken.slot, taken.trial_number) == (0, 7)


def test_finished_slots_stay_finished_and_released_ones_are_free(database_url: str) -> None:
    ledger = ledger_in(database_url)
    first, second = ledger.claim(2), ledger.claim(2)
    assert first is not None and second is not None
    ledger.close(first)
    assert ledger.claim(2) is None
    ledger.release(second)
    again = ledger.claim(2)
    assert again is not None and again.slot == second.slot


def test_a_reused_process_id_is_another_process() -> None:
    assert process_identity(os.getpid()) != f"{os.getpid()}/1"


def test_items_and_scores_must_match() -> None:
    with pytest.raises(ValueError, match="equally many"):
        ItemScores(("a",), (1.0, 2.0))
