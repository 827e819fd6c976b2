"""What samplers see of an evaluation beside its values."""

from __future__ import annotations

import pytest

from mergefront.optimizer.scores.evaluation import RACED, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import STANDARD_ERRORS
from mergefront.optimizer.search.loop import told_attributes


@pytest.mark.parametrize(
    ("scores", "details", "told"),
    [
        ((1.0, 1.0, 1.0), {}, 0.0),
        ((1.0, 0.0, 1.0), {}, 0.25),
        ((1.0,), {}, 0.25),
        ((1.0, 1.0, 1.0), {RACED: {}}, 0.25),
    ],
    ids=["all agree", "they differ", "one item", "a race's answers"],
)
def test_items_that_all_agree_have_no_spread_for_the_sampler(
    scores: tuple[float, ...], details: dict[str, object], told: float
) -> None:
    """Their rule-of-succession error is common to all candidates: a surrogate would take it for noise of each."""
    items = ItemScores(tuple(map(str, range(len(scores)))), scores)
    evaluation = Evaluation({"maths": 1.0}, {"maths": 0.25}, {"maths": items}, details=details)
    assert told_attributes([Objective("maths")], [], evaluation)[0].user == {STANDARD_ERRORS: [told]}
