"""Whatever a user's function does or returns, the search goes on: the evaluation is kept or the trial failed."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

SPACE = mf.MergeSpace(["maths", "french"], method="task_arithmetic", parameters={"weight": [0, 1]})
BAD = 3
"""The evaluation, counted from 0, in which the function misbehaves."""


def search(folder: Path, misbehave: Callable[[], Any], evaluations: int = 6) -> mf.Study:
    calls = 0

    def score(recipe: mf.Recipe) -> Any:
        nonlocal calls
        calls += 1
        return misbehave() if calls == BAD + 1 else {"skill": 0.1 * calls}

    return mf.search(
        space=SPACE, evaluate=score, objectives=["skill"], sampler="random", evaluations=evaluations,
        storage=f"sqlite:///{folder}/study.db", name="outside",
    )  # fmt: skip


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text for you")


class Unprintable:
    def __repr__(self) -> str:
        raise ValueError("no text for you")


def raises(error: BaseException) -> Callable[[], Any]:
    def misbehave() -> Any:
        raise error

    return misbehave


@pytest.mark.parametrize(
    ("misbehave", "said"),
    [
        (lambda: sys.exit(0), "SystemExit: the evaluator called sys.exit(0)"),
        (lambda: sys.exit("no more data"), "no more data"),
        (raises(MemoryError()), "MemoryError"),
        (raises(RecursionError("too deep")), "too deep"),
        (raises(UserError("wrong file")), "wrong file"),
        (raises(UnprintableError()), "UnprintableError: no message"),
        (raises(RuntimeError("x" * 100_000)), "[96020 more]"),
        (lambda: None, "objective 'skill' is None, not a number"),
        (lambda: {}, "objective 'skill' was not scored"),
        (lambda: {"skill": float("nan")}, "not a finite number"),
        (lambda: {"skill": -1e308}, "is -1e+308, beyond 1e+150"),
        (lambda: Evaluation({"skill": 1.0}, {"skill": -0.1}), "the standard error of 'skill' is -0.1; it must be"),
        (lambda: Evaluation({"skill": 1.0}, items={"x" * 300: ItemScores(("1",), (1.0,))}), "a name has 1 to 200"),
        (lambda: Evaluation({"skill": 1.0}, items={"skill": [1, 2]}), "items of 'skill' are list"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_scored_is_a_failed_trial(tmp_path: Path, misbehave: Callable[[], Any], said: str) -> None:
    study = search(tmp_path, misbehave)
    (failure,) = study.failures()
    assert failure.number == BAD and said in failure.reason
    assert study.finished_count() == 6 and len(failure.reason) <= 4100


@pytest.mark.parametrize(
    "note", [None, "fine", b"bytes", ["a", "list"], Unprintable(), float("inf"), {1: 2}, np.float32(0.5), 10**400]
)
def test_whatever_is_reported_beside_the_objectives_costs_no_evaluation(tmp_path: Path, note: object) -> None:
    """The evaluation was paid for."""
    study = search(tmp_path, lambda: {"skill": 0.9, "note": note, 7: 1.0})
    assert study.failures() == [] and study.finished_count() == 6
    assert study.candidates()[BAD].scores == {"skill": 0.9}
    (found,) = [one for one in study.ledger.evaluations().values() if one.scores["skill"] == 0.9]
    assert found.scores["7"] == 1.0 and ("note" in found.scores) != ("note" in found.details.get("unscored", {}))


def test_numbers_that_a_whole_evaluation_reports_are_kept_as_far_as_they_are_numbers(tmp_path: Path) -> None:
    returned = Evaluation(
        {"skill": np.float64(0.9)}, standard_errors={"skill": None}, seconds={"total": "long"},  # type: ignore[dict-item]
        cost={"tokens": np.int64(7)}, details={"path": Path("x"), "known": [1, 2]},
    )  # fmt: skip
    study = search(tmp_path, lambda: returned)
    (found,) = [one for one in study.ledger.evaluations().values() if one.scores["skill"] == 0.9]
    assert found.cost == {"tokens": 7.0} and found.seconds == {} and found.standard_errors == {}
    assert found.details["known"] == [1, 2] and "x" in found.details["path"]


def test_a_function_that_moves_about_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    """A relative path of the user's own, and their random numbers, mean the same before and after."""
    (tmp_path / "elsewhere").mkdir()

    def move() -> dict[str, float]:
        os.chdir(tmp_path / "elsewhere")
        random.seed(0)
        np.random.seed(0)
        return {"skill": 0.5}

    random.seed(5)
    np.random.seed(5)
    expected = (random.Random(5).random(), np.random.RandomState(5).rand())
    before = os.getcwd()
    assert search(tmp_path, move).failures() == []
    assert os.getcwd() == before and (random.random(), np.random.rand()) == expected


def test_an_interrupt_is_no_failed_trial(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, raises(KeyboardInterrupt()))
    study = mf.load_study("outside", storage=f"sqlite:///{tmp_path}/study.db")
    assert study.failures() == [] and study.finished_count() == BAD
