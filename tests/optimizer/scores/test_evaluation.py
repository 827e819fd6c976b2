"""Items that all agree leave a score unsure, and the study says by how much."""

from __future__ import annotations

import numpy as np
import pytest

from mergefront.optimizer.scores.evaluation import RACED, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import STANDARD_ERRORS
from mergefront.optimizer.search.loop import told_attributes


def item_scores(*scores: float) -> ItemScores:
    return ItemScores(tuple(map(str, range(len(scores)))), scores)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong_is_not_without_error(right: float) -> None:
    """A score of 1.000 on 60 items was shown as exact."""
    chance = 1 / 62
    assert item_scores(*[right] * 60).standard_error == pytest.approx(np.sqrt(chance * (1 - chance) / 60))


def test_other_scores_have_the_spread_of_their_items() -> None:
    assert item_scores(1.0, 0.0, 1.0, 1.0).standard_error == pytest.approx(np.std([1, 0, 1, 1], ddof=1) / 2)
    assert item_scores(2.5, 2.5, 2.5).standard_error == 0.0


@pytest.mark.parametrize(("details", "told"), [({}, 0.0), ({RACED: {}}, 0.1)])
def test_samplers_see_no_spread_where_items_agree(details: dict[str, object], told: float) -> None:
    """Resumed searches would propose otherwise; of a raced candidate the error is that of the items not asked."""
    evaluation = Evaluation({"maths": 1.0}, {"maths": 0.1}, {"maths": item_scores(1.0, 1.0)}, details=details)
    attributes = told_attributes((Objective("maths"),), (), evaluation)[0].user
    assert attributes[STANDARD_ERRORS] == [told]
