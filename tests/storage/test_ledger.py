"""What finished is kept, exactly, and no slot of the budget is worked on twice or lost."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial
from small_study import small_study
from sqlalchemy.engine import Connection

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.foreign_text import LONGEST_NAME
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, FunctionEvaluator, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import SEARCH_SPACE
from mergefront.optimizer.search.ledger import Attributes
from mergefront.running.worker import work
from mergefront.storage.database import Database
from mergefront.storage.ledger import StudyLedger
from mergefront.storage.schema import claims, evaluations
from mergefront.storage.studies import create_or_load, update
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
    ledger.record(recipe_at(0.7), evaluation, "search")
    asked = recipe_at(0.7).digest
    assert list(ledger.recipes(asked)) == [asked] and ledger.recipes(asked)[asked] == recipe_at(0.7)


class NoLicenceError(Exception):
    pass


NoLicenceError.__name__ = "NoLicence" * 100 + "Error"


def test_long_texts_are_kept_by_their_ends_and_end_no_worker(database_url: str) -> None:
    """A trial whose failure cannot be written would be evaluated again by every restart."""

    asked_for: list[Recipe] = []

    def evaluate(recipe: Recipe) -> Evaluation:
        asked_for.append(recipe)
        if len(asked_for) == 7:
            raise NoLicenceError("begins " + "🙂" * 200_000 + " ends")
        text = "begins " + "ü" * 200_000 + " ends"
        return Evaluation({"score": 1.0, "note": text}, details={"log": text, "lines": [text] * 40})  # type: ignore[dict-item]

    space = mf.MergeSpace(["a", "b"], method="ties")
    study = mf.search(
        space=space, evaluate=evaluate, objectives=["score"], sampler="random", evaluations=8,
        storage=database_url, name="long",
    )  # fmt: skip
    assert study.finished_count() == len(asked_for) == 8
    reason = study.failures()[0].reason
    assert len(reason) < 5000 and reason.endswith(" ends") and "begins" in reason
    for candidate in study.candidates():
        kept = candidate.evaluation.details
        assert len(str(kept)) < 20_000 and kept["log"].startswith("begins ") and kept["log"].endswith(" ends")


@pytest.mark.cases(1)
def test_a_space_of_hundreds_of_layers_is_kept(database_url: str) -> None:
    """Merges layer by layer; Optuna's own columns take 64 kB on MariaDB."""
    space = mf.MergeSpace(["a", "b"], method="ties", granularity="layers", layers=300)
    study = mf.search(
        space=space, evaluate=lambda recipe: 1.0, objectives=["score"], sampler="random", evaluations=6,
        storage=database_url, name="wide",
    )  # fmt: skip
    assert study.finished_count() == 6 and not study.failures()
    assert len(json.dumps(study.optuna.user_attrs[SEARCH_SPACE])) > 2**16


def test_the_longest_names_are_kept(database_url: str) -> None:
    """A column that is too narrow would lose an evaluation that was paid for."""
    long = ["\U0001f600" * LONGEST_NAME, "n" * LONGEST_NAME]
    items = ItemScores(("one", "two"), (0.0, 1.0))
    evaluation = Evaluation(dict.fromkeys(long, 0.5), items=dict.fromkeys(long, items))
    study = mf.search(
        space=mf.MergeSpace(long, method="ties"), evaluate=lambda recipe: evaluation, objectives=long,
        constraints=[f"{long[0]} >= 0.1"], sampler="random", evaluations=6, storage=database_url, name=long[0],
    )  # fmt: skip
    assert not study.failures() and study.candidates()[-1].scores == dict.fromkeys(long, 0.5)
    with pytest.raises(UserError, match="is too long to be kept"):
        mf.MergeSpace(["a"], method="ties", split=["x" * 600])


def test_budget_is_never_overshot_by_threads_claiming_at_once(database_url: str) -> None:
    ledgers = [ledger_in(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        rounds = [list(pool.map(lambda ledger: ledger.claim(10), ledgers)) for _ in range(4)]
    slots = [claim.slot for claims in rounds for claim in claims if claim is not None]
    assert sorted(slots) == list(range(10))


def test_slot_of_a_killed_process_is_taken_over_and_a_live_ones_is_not(database_url: str) -> None:
    script = (
        "import sys, time, optuna; sys.path[:0] = sys.argv[2:]\n"
        "from test_ledger import Attributes, ledger_in\n"
        "ledger = ledger_in(sys.argv[1]); claim = ledger.claim(10)\n"
        "study = optuna.load_study(study_name='study', storage=ledger.database.optuna_storage)\n"
        "trials = [study.ask() and study.trials[-1] for _ in range(3)]\n"
        "ledger.bind(claim, trials[-1], {}, {}, Attributes())\n"
        "print(claim.slot, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, database_url, str(Path(__file__).parent), *sys.path],
        stdout=subprocess.PIPE,
        text=True,
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
    assert (taken.slot, taken.trial_number, taken.deaths) == (0, 2, 1)


def test_finished_slots_stay_finished_and_released_ones_are_free(database_url: str) -> None:
    ledger = ledger_in(database_url)
    first, second = ledger.claim(2), ledger.claim(2)
    assert first is not None and second is not None
    told_by_somebody_else = create_trial(state=TrialState.RUNNING)  # no trial of this study is running
    ledger.finish(
        first, told_by_somebody_else, recipe_at(0.5), Evaluation({"maths": 0.5}), [0.5], Attributes(), keep=False
    )
    assert ledger.claim(2) is None
    ledger.release(second)
    again = ledger.claim(2)
    assert again is not None and again.slot == second.slot


def test_a_reused_process_id_is_another_process() -> None:
    assert process_identity(os.getpid()) != f"{os.getpid()}/1"


def test_items_and_scores_must_match() -> None:
    with pytest.raises(ValueError, match="equally many"):
        ItemScores(("a",), (1.0, 2.0))


@pytest.mark.parametrize("told", ["scores", "failure"])
def test_who_finishes_a_trial_second_changes_nothing_of_what_the_first_told(database_url: str, told: str) -> None:
    """Somebody tells trial 6 while a search evaluates it: its scores and its error bars are of one evaluation."""
    evaluated: list[str] = []

    def score(recipe: Recipe) -> Evaluation:
        evaluated.append(recipe.digest)
        if len(evaluated) == 7 and told == "scores":
            mf.load_study("both", storage=database_url).tell(6, {"score": 0.25}, standard_errors={"score": 0.125})
        elif len(evaluated) == 7:
            mf.load_study("both", storage=database_url).tell_failed(6, "the harness gave up")
        return Evaluation({"score": 0.75}, {"score": 0.5})

    study = mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties"),
        evaluate=score,
        objectives=["score"],
        sampler="random",
        evaluations=8,
        storage=database_url,
        name="both",
    )
    assert study.finished_count() == study.ledger.evaluation_count() == 8
    trial = study.optuna.get_trials()[6]
    found = study.ledger.evaluations().get(evaluated[6])
    if told == "scores":
        assert trial.values == [0.25]
        assert found is not None and (found.scores, found.standard_errors) == ({"score": 0.25}, {"score": 0.125})
        assert [0.125] in trial.user_attrs.values() and [0.5] not in trial.user_attrs.values()
    else:
        assert [failure.number for failure in study.failures()] == [6] and trial.values is None
        assert found is None and [0.5] not in trial.user_attrs.values()
        assert study.ledger.find(study.ledger.recipes()[evaluated[6]]) is None, "a failure is no evaluation to reuse"


class Deaf(Database):
    """Commits, and hears of every other commit only: the connection is lost before the answer comes."""

    heard = True

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[Connection]:
        with super().transaction(durable=durable) as connection:
            yield connection
        self.heard = not self.heard
        if not self.heard:
            locked = sqlite3.OperationalError("database is locked")
            locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise locked


def test_commits_that_are_not_heard_of_cost_one_evaluation_each_and_no_slot(database_url: str) -> None:
    study = small_study(database_url, 3)
    update(study.database, study.record, evaluations=9)
    evaluated: list[str] = []
    turns: list[None] = []

    def score(recipe: Recipe) -> float:
        evaluated.append(recipe.digest)
        return float(recipe.params["weight[a]"])

    def too_long() -> bool:
        turns.append(None)
        return len(turns) > 12  # who waits for a slot that nobody works on waits for ever

    deaf = mf.Study(Deaf(database_url), study.refresh().record)
    work(deaf, evaluator=FunctionEvaluator(score), should_stop=too_long)
    assert len(evaluated) == len(set(evaluated)) == 6
    assert study.finished_count() == study.ledger.evaluation_count() == 9
    trials = study.optuna.get_trials(deepcopy=False)
    assert [(trial.number, trial.state.name) for trial in trials] == [(n, "COMPLETE") for n in range(9)]
    with study.database.transaction() as connection:
        rows = connection.execute(claims.select().order_by(claims.c.slot)).all()
    assert [(row.slot, row.trial_number, row.deaths) for row in rows] == [(n, n, 0) for n in range(9)]


def test_a_claim_whose_commit_was_not_heard_of_is_the_next_one_and_an_open_one_is_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    ledger = ledger_in(url)
    deaf = StudyLedger(Deaf(url), ledger.study_id, {})
    made = [deaf.claim(10) for _ in range(3)]
    assert [(claim.slot, claim.deaths) for claim in made if claim is not None] == [(0, 0), (1, 0), (2, 0)]
    theirs = ledger.claim(10)
    assert theirs is not None and (theirs.slot, theirs.deaths) == (3, 0)


def test_an_evaluation_whose_commit_was_not_heard_of_is_kept_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    ledger = ledger_in(url)
    deaf = StudyLedger(Deaf(url), ledger.study_id, {})
    for weight in (0.1, 0.2):
        deaf.record(recipe_at(weight), Evaluation({"maths": weight}), "report")
    with ledger.database.transaction() as connection:
        rows = connection.execute(evaluations.select().order_by(evaluations.c.id)).all()
    assert [row.scores for row in rows] == [{"maths": 0.1}, {"maths": 0.2}]


def test_items_are_read_of_those_evaluations_that_they_are_asked_of(tmp_path: Path) -> None:
    ledger = ledger_in(f"sqlite:///{tmp_path}/study.db")
    first, second = recipe_at(0.1), recipe_at(0.2)
    items = ItemScores(("a", "b"), (0.0, 1.0))
    for recipe in (first, second):
        ledger.record(recipe, Evaluation({"maths": 0.5}, {}, {"maths": items}), "search")
    asked: tuple[bool | set[str], ...] = (False, True, {second.digest})
    found = [[bool(one.items) for one in ledger.evaluations(items=of).values()] for of in asked]
    assert found == [[False, False], [True, True], [False, True]]


def test_a_worker_is_named_by_its_machine_and_process(tmp_path: Path) -> None:
    ledger = ledger_in(f"sqlite:///{tmp_path}/study.db")
    leased = StudyLedger(ledger.database, ledger.study_id, {}, lease=60)
    assert ledger.claim(10) is not None and leased.claim(10) is not None
    mine, asked = ledger.workers()
    assert mine.name == f"{socket.gethostname()}:{os.getpid()}" and asked.name == "asked"
    assert (mine.trial, mine.abandoned) == (None, False)
    assert mine.seconds is not None and 0 <= mine.seconds < 60


@pytest.mark.parametrize(("ago", "abandoned"), [(0, False), (110, False), (130, True), (-110, False), (-130, True)])
def test_a_worker_elsewhere_is_given_up_after_two_minutes_of_silence(tmp_path: Path, ago: int, abandoned: bool) -> None:
    """So is one whose sign of life lies as far in the future: the clock was set back since, and nobody would wait."""
    ledger = ledger_in(f"sqlite:///{tmp_path}/study.db")
    assert ledger.claim(10) is not None
    heard = time.time() - ago
    elsewhere = {"host": "another/boot/namespace", "process": "1/2/3", "heartbeat": heard}
    with ledger.database.transaction() as connection:
        connection.execute(claims.update().values(**elsewhere))
    assert [worker.abandoned for worker in ledger.workers()] == [abandoned]
    claim = ledger.claim(10)
    assert claim is not None and claim.slot == (0 if abandoned else 1) and claim.deaths == int(abandoned)
    worked = next(worker.seconds for worker in reversed(ledger.workers()) if not worker.abandoned)
    assert worked is not None and worked < 60, "who takes over begins now"


def test_what_was_read_is_not_read_again(database_url: str) -> None:
    """A race reads all item scores before each candidate: that would grow with the study."""
    ledger = ledger_in(database_url)
    for number in range(4):
        items = {"maths": ItemScores(("a", "b"), (0.0, number / 4))}
        ledger.record(recipe_at(number / 10), Evaluation({"maths": number / 8}, items=items), "search")
    ledger.record(recipe_at(0.9), Evaluation({"maths": 1.0}), "report")
    order = [recipe_at(number / 10).digest for number in range(4)]
    every = ledger.evaluations_beside({})
    assert every == ledger.evaluations(items=True) and list(every) == order
    kept = {digest: Evaluation({"maths": -1.0}) for digest in order[1:3]}
    assert ledger.evaluations_beside(kept) == every | kept
    assert list(ledger.evaluations_beside(kept)) == order


def test_who_gives_a_slot_back_gives_back_its_own_alone(tmp_path: Path) -> None:
    """Others would wait for a slot that nobody works on, or take one from somebody who does."""
    ledger = ledger_in(f"sqlite:///{tmp_path}/study.db")
    leased = StudyLedger(ledger.database, ledger.study_id, {}, lease=60)
    given_back = leased.claim(10)
    assert given_back is not None
    leased.release(given_back)
    taken = ledger.claim(10)
    assert taken is not None and (taken.slot, taken.deaths) == (given_back.slot, 0)
    leased.release(given_back)
    after = leased.claim(10)
    assert after is not None and after.slot != taken.slot


@pytest.mark.parametrize("lease", [60.0, 3600.0])
@pytest.mark.parametrize(("part", "free"), [(0.0, False), (0.9, False), (1.1, True)])
def test_a_claim_that_was_asked_for_is_free_when_its_lease_has_passed(
    tmp_path: Path, lease: float, part: float, free: bool
) -> None:
    """Sooner, two would evaluate one trial; never, the budget would not be spent."""
    ledger = ledger_in(f"sqlite:///{tmp_path}/study.db")
    leased = StudyLedger(ledger.database, ledger.study_id, {}, lease=lease)
    assert leased.claim(10) is not None
    with ledger.database.transaction() as connection:
        connection.execute(claims.update().values(heartbeat=claims.c.heartbeat - part * lease))
    assert [worker.abandoned for worker in ledger.workers()] == [free]
    assert ledger.others_at_work() is not free
    claim = ledger.claim(10)
    assert claim is not None and (claim.slot, claim.fresh) == ((0, False) if free else (1, True))


class Noted(Database):
    """Says of each transaction whether it was to outlast a power cut."""

    def __init__(self, url: str) -> None:
        self.durable: list[bool] = []
        super().__init__(url)

    def transaction(self, *, durable: bool = False) -> AbstractContextManager[Connection]:
        self.durable.append(durable)
        return super().transaction(durable=durable)


def test_what_was_paid_for_outlasts_a_power_cut(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    ledger = ledger_in(url)
    noted = Noted(url)
    paid = StudyLedger(noted, ledger.study_id, {})
    claim = paid.claim(10)
    assert claim is not None
    evaluation, trial = Evaluation({"maths": 0.5}), create_trial(state=TrialState.RUNNING)
    noted.durable.clear()
    paid.finish(claim, trial, recipe_at(0.5), evaluation, [0.5], Attributes(), keep=True)
    paid.record(recipe_at(0.5), evaluation, "report")
    assert noted.durable == [True, True]


def test_studies_of_one_database_know_nothing_of_each_other(tmp_path: Path) -> None:
    """A shared database would spend one study's budget on another's slots, and score merges of other models."""
    ledger = ledger_in(f"sqlite:///{tmp_path}/study.db")
    record = create_or_load(
        ledger.database, "another", {"space": 1}, [Objective("maths")], root=".", evaluations=10, versions={}
    )
    other = StudyLedger(ledger.database, record.study_id, {})
    claim = ledger.claim(1)
    assert claim is not None and ledger.claim(1) is None
    ledger.record(recipe_at(0.5), Evaluation({"maths": 0.5}), "search")
    assert not other.others_at_work() and not other.workers() and other.claim_of(0) is None
    assert (other.finished_count(), other.evaluation_count()) == (0, 0)
    assert other.find(recipe_at(0.5)) is None and not other.evaluations() and not other.recipes()
    theirs = other.claim(1)
    assert theirs is not None and (theirs.slot, theirs.in_line) == (0, False)
    ledger.finish(
        claim, create_trial(state=TrialState.RUNNING), recipe_at(0.5), Evaluation({}), [0.5], Attributes(), keep=False
    )
    assert (ledger.finished_count(), other.finished_count()) == (1, 0)
