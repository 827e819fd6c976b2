"""An outside harness can drive a study, repeat itself after a fault, and die."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import mergefront as mf
from mergefront.running.worker import work

STUDY = """
study: skills
merge: {method: ties, models: [maths, french], space: {weight: [0, 1]}}
backend: {type: function, call: "ask_tell_scorer:score"}
objectives: [maths, french]
search: {sampler: random, evaluations: 8}
"""
SCORER = """
def score(recipe):
    p = recipe.params
    return {"maths": p["weight[maths]"], "french": -p["weight[maths]"] + p["weight[french]"]}
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A study of 8 evaluations, the first of which is done."""
    (tmp_path / "ask_tell_scorer.py").write_text(SCORER)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("evaluations: 8", "evaluations: 1"))
    study = mf.run(path)
    from mergefront.storage.studies import update

    update(study.database, study.record, evaluations=8)
    return study.database.url


def test_asked_trials_are_those_that_a_run_would_have_tried(url: str) -> None:
    seen = []
    while (asked := mf.load_study("skills", storage=url).ask()) is not None:
        seen.append(asked)
        mf.load_study("skills", storage=url).tell(asked.trial, {"maths": 0.5, "french": float(asked.trial)})
    assert [asked.trial for asked in seen] == list(range(1, 8))
    assert [asked.anchor for asked in seen][:4] == [
        "expert maths",
        "expert french",
        "uniform average",
        "task arithmetic 0.3",
    ]
    study = mf.load_study("skills", storage=url)
    assert study.best("french").recipe == seen[-1].recipe


def test_telling_twice_is_harmless_and_contradicting_is_not(url: str) -> None:
    asked = mf.load_study("skills", storage=url).ask()
    assert asked is not None
    scores = {"maths": 0.5, "french": 0.25}
    mf.load_study("skills", storage=url).tell(asked.trial, scores)
    mf.load_study("skills", storage=url).tell(asked.trial, scores)
    with pytest.raises(mf.UserError, match="other scores"):
        mf.load_study("skills", storage=url).tell(asked.trial, {"maths": 0.6, "french": 0.25})
    with pytest.raises(mf.UserError, match="finished already, with scores"):
        mf.load_study("skills", storage=url).tell_failed(asked.trial, "node 7 caught fire")
    assert mf.load_study("skills", storage=url).finished_count() == 2


def test_a_lease_that_ran_out_hands_the_same_trial_out_again(url: str) -> None:
    first = mf.load_study("skills", storage=url).ask(1e-6)
    again = mf.load_study("skills", storage=url).ask()
    other = mf.load_study("skills", storage=url).ask()
    assert first is not None and again is not None and other is not None
    assert (again.trial, again.recipe) == (first.trial, first.recipe)
    assert other.trial != again.trial


@pytest.mark.parametrize(
    ("trial", "scores", "words"),
    [
        (99, {"maths": 1.0, "french": 1.0}, "no trial 99"),
        (1, {"maths": 1.0}, "'french' was not scored"),
        (1, {"maths": float("nan"), "french": 1.0}, "not a finite number"),
        (1, {"maths": 1.0, "french": 1.0, "german": 1.0}, "no objective 'german'"),
    ],
)
def test_wrong_tells_change_nothing(url: str, trial: int, scores: dict[str, float], words: str) -> None:
    assert mf.load_study("skills", storage=url).ask() is not None
    with pytest.raises(mf.UserError, match=words):
        mf.load_study("skills", storage=url).tell(trial, scores)
    assert mf.load_study("skills", storage=url).finished_count() == 1


def test_a_failure_can_be_reported(url: str) -> None:
    asked = mf.load_study("skills", storage=url).ask()
    assert asked is not None
    for _ in range(2):  # a harness repeats itself after a fault
        mf.load_study("skills", storage=url).tell_failed(asked.trial, "node 7 caught fire")
    assert mf.load_study("skills", storage=url).failures()[0].reason == "reported: node 7 caught fire"


def test_workers_share_the_budget_and_never_overshoot_it(url: str) -> None:
    finished: list[int] = []
    threads = [
        threading.Thread(
            target=lambda: work("skills", storage=url, on_trial_end=lambda outcome: finished.append(outcome.slot))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == list(range(1, 8))


def test_a_worker_drains_when_it_is_asked_to_stop(url: str) -> None:
    finished: list[int] = []
    work(
        "skills",
        storage=url,
        on_trial_end=lambda outcome: finished.append(outcome.slot),
        should_stop=lambda: len(finished) > 1,
    )
    assert finished == [1, 2]
