"""Constraints as users write them, and what they say of an evaluation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.constraints import Constraint, checked_violations, constraints_from, feasible
from mergefront.optimizer.scores.evaluation import Evaluation

numbers = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    "written",
    [
        "forgetting <= 0.02",
        "forgetting<=2e-2",
        {"name": "forgetting", "at_most": 0.02},
        Constraint("forgetting", "<=", 0.02),
    ],
)
def test_every_way_to_write_a_constraint_is_the_same(written: Any) -> None:
    assert constraints_from([written]) == (Constraint("forgetting", "<=", 0.02),)


@given(numbers, numbers)
def test_a_constraint_holds_exactly_when_the_number_is_on_its_side(value: float, bound: float) -> None:
    evaluation = Evaluation({"score": value})
    assert feasible(checked_violations(evaluation, [Constraint("score", "<=", bound)])) == (value <= bound)
    assert feasible(checked_violations(evaluation, [Constraint("score", ">=", bound)])) == (value >= bound)


def test_what_was_counted_can_be_bounded_too() -> None:
    evaluation = Evaluation({"maths": 0.5}, cost={"generated_tokens": 420.0})
    assert checked_violations(evaluation, constraints_from(["generated_tokens <= 400", "maths >= 0.25"])) == [20, -0.25]


@pytest.mark.parametrize("scores", [{}, {"forgetting": float("nan")}, {"forgetting": "much"}])
def test_a_number_that_is_not_there_fails_the_candidate(scores: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match="forgetting"):
        checked_violations(Evaluation(scores), constraints_from(["forgetting <= 0.02"]))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        (["forgetting < 0.02"], "must be written like"),
        (["forgetting <= little"], "'little' is not a number"),
        (["forgetting <= inf"], "finite"),
        ([{"name": "forgetting"}], "either 'at_most' or 'at_least'"),
        ([{"name": "forgetting", "at_most": 1, "at_least": 0}], "either 'at_most' or 'at_least'"),
        (["a <= 1", "a <= 2"], "keep the tighter one"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(written: list[Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        constraints_from(written)


def test_a_score_of_the_users_own_goes_before_a_count_of_the_same_name() -> None:
    evaluation = Evaluation({"items": 3.0}, cost={"items": 100.0})
    assert checked_violations(evaluation, constraints_from(["items <= 10"])) == [-7.0]
