"""Scores that come from outside are checked before they are kept, and a report can be repeated."""

from __future__ import annotations

from typing import Any

import pytest

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.ask_tell import told_evaluation
from mergefront.optimizer.search.loop import SearchPlan

PLAN = SearchPlan(mf.MergeSpace(["a", "b"]), (Objective("maths"), Objective("french")), (), 10)
ITEMS = {"maths": {"one": 1.0, "two": 0.0, "three": 0.5, "four": 0.5}}


def test_items_need_no_score_beside_them() -> None:
    """Their mean is the score, and what they differ by its standard error."""
    found = told_evaluation(PLAN, {"french": 2.0}, {}, ITEMS)
    assert found.scores == {"maths": 0.5, "french": 2.0}
    assert found.standard_errors == {"maths": pytest.approx((0.5 / 3 / 4) ** 0.5)}
    assert told_evaluation(PLAN, {}, {}, {"maths": {"one": 1.0}}).standard_errors == {}, "one item says nothing of it"


@pytest.mark.parametrize(("score", "fits"), [(0.5, True), (0.5004, True), (0.502, False), (50.0, False)])
def test_a_score_that_is_not_the_mean_of_its_items_is_refused(score: float, fits: bool) -> None:
    """Per cent beside fractions: one of the two would be believed in silence."""
    if fits:
        assert told_evaluation(PLAN, {"maths": score}, {}, ITEMS).scores["maths"] == score
    else:
        with pytest.raises(UserError, match="the mean of its 4 items is 0\\.5; leave the score out"):
            told_evaluation(PLAN, {"maths": score}, {}, ITEMS)


def test_a_score_can_be_exact() -> None:
    assert told_evaluation(PLAN, {"maths": 1.0}, {"maths": 0}, {}).standard_errors == {"maths": 0.0}


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (({"maths": 1.0}, {"maths": -0.1}, {}), "the standard error of 'maths' is -0.1; it must be at least 0"),
        (({"maths": 1.0}, {"maths": float("nan")}, {}), "the standard error of 'maths'"),
        (({"maths": "good"}, {}, {}), "objective 'maths'"),
        (({}, {}, {"maths": {}}), "items of 'maths': tell at least one"),
        (({}, {}, {"maths": [1.0]}), "items of 'maths': tell at least one"),
        (({}, {}, {"maths": {"one": None}}), "item 'one' of 'maths'"),
        (({}, {}, {"mathz": {"one": 1.0}}), "no objective 'mathz'.*'maths'"),
    ],
)
def test_what_is_no_score_is_refused(told: tuple[Any, Any, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        told_evaluation(PLAN, *told)
