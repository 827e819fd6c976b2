"""Whether one candidate is better than another: by the items that both answered, never by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mergefront.optimizer.scores.differences import better_beyond_noise, scored_difference
from mergefront.optimizer.scores.evaluation import RACED, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective

MATHS, LOSS = Objective("maths"), Objective("loss", "minimize")


def answered(objective: Objective, scores: Sequence[float], *, first: int = 0, raced: bool = False) -> Evaluation:
    """Answers to items of the given scores, counted from ``first``."""
    items = ItemScores(tuple(f"q{first + number}" for number in range(len(scores))), tuple(scores))
    details = {RACED: {"of": {objective.name: 100}}} if raced else {}
    return Evaluation(
        {objective.name: items.mean}, {objective.name: items.standard_error}, {objective.name: items}, details=details
    )


@pytest.mark.parametrize(("objective", "sign"), [(MATHS, 1.0), (LOSS, -1.0)])
@pytest.mark.parametrize("raced", [False, True])
def test_candidates_are_compared_item_by_item_and_positive_is_better(
    objective: Objective, sign: float, raced: bool
) -> None:
    hard = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    high = answered(objective, [score + 0.1 + 0.001 * n for n, score in enumerate(hard)], raced=raced)
    low = answered(objective, hard, raced=raced)
    found = scored_difference(objective, high, low)
    assert found.pairs == 6 and found.mean == pytest.approx(sign * 0.1025) and found.standard_error < 0.001
    assert scored_difference(objective, low, high).mean == pytest.approx(-sign * 0.1025)


def test_items_in_another_order_are_found_by_their_ids() -> None:
    """A data set that was shuffled, or sharded, would make noise of a difference that is the same in every item."""
    hard = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    first, second = answered(MATHS, [score + 0.1 + 0.001 * n for n, score in enumerate(hard)]), answered(MATHS, hard)
    items = second.items["maths"]
    turned = replace(second, items={"maths": ItemScores(items.ids[::-1], items.scores[::-1])})
    assert scored_difference(MATHS, first, turned) == scored_difference(MATHS, first, second)


def test_only_a_race_compares_by_a_part_of_the_items() -> None:
    """Two candidates of a study without racing answered different items: a report and a search, or a changed task."""
    scores = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    for raced, pairs in ((True, 4), (False, None)):
        first, second = answered(MATHS, scores, raced=raced), answered(MATHS, scores, first=2, raced=raced)
        assert scored_difference(MATHS, first, second).pairs == pairs
        part = answered(MATHS, scores[2:], first=2, raced=raced)
        assert scored_difference(MATHS, first, part).pairs == pairs


def test_a_number_that_is_no_mean_of_its_items_is_compared_by_its_own_error() -> None:
    items = ItemScores(("q0", "q1", "q2"), (1.0, 2.0, 3.0))
    first, second = (Evaluation({"maths": rank}, {"maths": 0.1}, {"maths": items}) for rank in (0.9, 0.4))
    found = scored_difference(MATHS, first, second)
    assert found.pairs is None and found.mean == pytest.approx(0.5) and found.standard_error == pytest.approx(0.02**0.5)


def test_a_lead_within_noise_makes_nobody_better() -> None:
    """The distinct front would keep members that are no alternative to one another."""
    drawn = np.random.default_rng(0).normal(0.5, 0.2, (2, 30))
    luckier, other = sorted(drawn.tolist(), key=sum, reverse=True)
    clear = [score + 0.3 for score in other]
    rows = [answered(MATHS, scores) for scores in (luckier, other, clear)]
    assert better_beyond_noise([MATHS], rows) == [[False, False, False], [False, False, False], [True, True, False]]
