"""A search that is killed at any instant and resumed ends as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_study import NAME, small_study

import mergefront as mf
from mergefront.optimizer.scores.evaluation import FunctionEvaluator
from mergefront.running.worker import work
from mergefront.storage.studies import update

STUDY = """
study: skills
seed: 7
merge: {method: ties, models: [maths, french], space: {weight: [0, 1], density: [0.1, 1]}}
backend: {type: function, call: "scorer:score"}
objectives: [maths, french, {name: delta_l1, direction: minimize}]
search: {sampler: mm-mo, evaluations: 14}
"""
# Every call leaves a line behind, so that a recipe which is evaluated twice is seen.
SCORER = """
import time
from pathlib import Path

def score(recipe):
    time.sleep(0.03)
    p = recipe.params
    a, b = p["weight[maths]"], p["weight[french]"]
    d = p.get("density[maths]", 1.0)
    with (Path(__file__).parent / "calls.txt").open("a") as calls:
        calls.write(recipe.digest + "\\n")
    french = 1 - (b - 0.8) ** 2 - 0.3 * a * a - 0.1 * (d - 0.5) ** 2
    return {"maths": 1 - (a - 0.9) ** 2 - 0.3 * b * b, "french": french, "delta_l1": 1e5 * (a * d + b)}
"""

# The seventh recipe that it is asked for ends the process, whenever it is asked for.
CRASHING_SCORER = SCORER.replace(
    "    p = recipe.params",
    """    told = Path(__file__).parent / "calls.txt"
    seen = list(dict.fromkeys(told.read_text().split())) if told.exists() else []
    if recipe.digest in seen[6:7] or (recipe.digest not in seen and len(seen) == 6):
        told.open("a").write(recipe.digest + "\\n")
        import os
        os._exit(139)
    p = recipe.params""",
)


def write_study(folder: Path) -> Path:
    folder.mkdir()
    (folder / "scorer.py").write_text(SCORER)
    path = folder / "study.yaml"
    path.write_text(STUDY)
    return path


def run_in_process(path: Path, resume: bool) -> subprocess.Popen[bytes]:
    url = f"sqlite:///{path.parent}/mergefront.db"
    call = f"mf.resume('skills', storage={url!r})" if resume else f"mf.run({str(path)!r})"
    return subprocess.Popen([sys.executable, "-c", f"import mergefront as mf; {call}"])


def trials(path: Path) -> list[tuple[int, dict[str, object], list[float]]]:
    study = mf.load_study("skills", storage=f"sqlite:///{path.parent}/mergefront.db")
    return [(trial.number, trial.params, trial.values) for trial in study.optuna.get_trials(deepcopy=False)]


@pytest.mark.long
def test_killed_at_random_instants_it_ends_like_the_uninterrupted_run(tmp_path: Path) -> None:
    whole = write_study(tmp_path / "whole")
    assert run_in_process(whole, resume=False).wait() == 0
    expected = trials(whole)
    assert len(expected) == 14

    broken = write_study(tmp_path / "broken")
    moments = random.Random(0)
    kills = 0
    while len(set(_calls(broken))) < 14:
        process = run_in_process(broken, resume=_has_study(broken.parent / "mergefront.db"))
        # A new recipe each time: one that two processes died on would be given up.
        wanted = len(set(_calls(broken))) + moments.randint(1, 2)
        while process.poll() is None and len(set(_calls(broken))) < wanted:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 0.05))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert run_in_process(broken, resume=True).wait() == 0
    assert kills >= 3, "the run was hardly ever interrupted, so nothing was tested"
    assert trials(broken) == expected
    calls = _calls(broken)
    assert len(calls) - len(set(calls)) <= kills, "only an evaluation that a kill cut off may run again"


def _calls(path: Path) -> list[str]:
    file = path.parent / "calls.txt"
    return file.read_text().split() if file.exists() else []


def _has_study(database: Path) -> bool:
    if not database.exists():
        return False
    try:
        mf.load_study("skills", storage=f"sqlite:///{database}")
    except mf.UserError:
        return False
    return True


def test_identical_recipes_are_evaluated_once(tmp_path: Path) -> None:
    seen: list[str] = []
    reused: list[bool] = []

    def score(recipe: mf.Recipe) -> float:
        seen.append(recipe.digest)
        return 1.0

    space = mf.MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": {"choices": [0.0, 1.0]}})
    study = mf.search(
        space=space,
        evaluate=score,
        objectives=["score"],
        sampler="random",
        evaluations=20,
        storage=f"sqlite:///{tmp_path}/m.db",
        name="few",
        on_trial_end=lambda outcome: reused.append(outcome.reused),
    )
    assert len(seen) == len(set(seen)) <= 6
    assert study.finished_count() == 20
    assert study.ledger.evaluation_count() == len(seen) == reused.count(False) and len(reused) == 20


def test_a_bad_candidate_is_a_failed_trial_and_the_search_goes_on(tmp_path: Path) -> None:
    def score(recipe: mf.Recipe) -> dict[str, float]:
        weight = float(recipe.params["weight[a]"])
        if weight > 0.9:
            raise RuntimeError("CUDA error: out of memory")
        return {"score": float("nan") if weight == 0.3 else weight}

    space = mf.MergeSpace(["a", "b"], method="task_arithmetic")
    study = mf.search(
        space=space,
        evaluate=score,
        objectives=["score"],
        sampler="mm-mo",
        evaluations=10,
        storage=f"sqlite:///{tmp_path}/m.db",
        name="bumpy",
    )
    reasons = {failure.number: failure.reason for failure in study.failures()}
    assert reasons[1] == "RuntimeError: CUDA error: out of memory"
    assert "not finite" in reasons[4] and "nan" in reasons[4]
    assert study.finished_count() == 10
    assert all(candidate.scores["score"] <= 0.9 for candidate in study.candidates())


def test_failures_in_a_row_stop_the_search_with_what_they_have_in_common(tmp_path: Path) -> None:
    def score(recipe: mf.Recipe) -> float:
        raise mf.EvaluationError("the server is gone", kind="connection")

    space = mf.MergeSpace(["a", "b"], method="task_arithmetic")
    with pytest.raises(mf.SearchStoppedError, match=r"5 evaluations in a row failed, all of kind 'connection'"):
        mf.search(
            space=space,
            evaluate=score,
            objectives=["score"],
            evaluations=30,
            storage=f"sqlite:///{tmp_path}/m.db",
            name="dead",
        )
    study = mf.load_study("dead", storage=f"sqlite:///{tmp_path}/m.db")
    assert len(study.failures()) == 5


def test_a_study_grows_to_a_larger_budget_and_keeps_its_trials(tmp_path: Path) -> None:
    space = mf.MergeSpace(["a", "b"], method="task_arithmetic")

    def score(recipe: mf.Recipe) -> float:
        return -float(recipe.params["weight[a]"])

    arguments = {
        "space": space,
        "evaluate": score,
        "objectives": ["score"],
        "name": "grows",
        "storage": f"sqlite:///{tmp_path}/m.db",
    }
    small = mf.search(**arguments, evaluations=7)
    first = [(c.number, c.recipe) for c in small.candidates()]
    large = mf.search(**arguments, evaluations=11)
    assert large.finished_count() == 11
    assert [(c.number, c.recipe) for c in large.candidates()][: len(first)] == first
    with pytest.raises(mf.UserError, match="seed: was 0, is now 1"):
        mf.search(**arguments, evaluations=12, seed=1)


DYING_WORKER = """
import os, sys
from mergefront.optimizer.scores.evaluation import FunctionEvaluator
from mergefront.running.worker import work
work(sys.argv[1], storage=sys.argv[2], evaluator=FunctionEvaluator(lambda recipe: os._exit(9)))
"""


def test_a_trial_that_killed_two_workers_kills_no_third(tmp_path: Path) -> None:
    """A merge that takes more memory than there is would kill one worker after the other for ever."""
    folder = tmp_path / "first"
    folder.mkdir()
    url = f"sqlite:///{folder}/study.db"
    study = small_study(url, 6)
    update(study.database, study.record, evaluations=8)
    study.database.close()  # an SQLite file must not be copied by a process that has it open
    evaluated: list[str] = []

    def score(recipe: mf.Recipe) -> float:
        evaluated.append(recipe.digest)
        return 0.5

    for copy in ("once", "twice"):
        died = subprocess.run([sys.executable, "-c", DYING_WORKER, NAME, f"sqlite:///{folder}/study.db"], timeout=120)
        assert died.returncode == 9
        shutil.copytree(folder, tmp_path / copy)

    done = work(NAME, storage=url, evaluator=FunctionEvaluator(score))
    assert [failure.number for failure in done.failures()] == [6] and "2 processes died" in done.failures()[0].reason
    assert len(evaluated) == 1 and done.candidates()[-1].digest == evaluated[0] and done.finished_count() == 8
    assert len(done.optuna.get_trials(deepcopy=False)) == 8, "both died on the same trial"

    # One death may be an accident.
    once = work(NAME, storage=f"sqlite:///{tmp_path}/once/study.db", evaluator=FunctionEvaluator(score))
    assert once.failures() == [] and [candidate.number for candidate in once.candidates()] == list(range(8))


@pytest.mark.long
def test_a_function_that_ends_the_process_is_given_up_after_two_resumes(tmp_path: Path) -> None:
    """Every resume would die on it again, and the study would never be finished."""
    path = write_study(tmp_path / "crashing")
    (path.parent / "scorer.py").write_text(CRASHING_SCORER)
    codes = [run_in_process(path, resume=number > 0).wait() for number in range(3)]
    assert codes == [139, 139, 0]
    study = mf.load_study("skills", storage=f"sqlite:///{path.parent}/mergefront.db")
    (failure,) = study.failures()
    assert failure.number == 6 and "2 processes died" in failure.reason and study.finished_count() == 14
