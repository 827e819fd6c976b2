"""The smallest difference that items would show: against simulated comparisons, judged by the tests that we use."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergefront.optimizer.scores.comparison import Difference, paired_difference
from mergefront.optimizer.scores.power import POWER, detectable_by_mcnemar, detectable_by_t


def found_by_mcnemar(items: int, discordance: float, difference: float, level: float, runs: int = 3000) -> float:
    """The share of simulated comparisons of right-or-wrong items with p below ``level``."""
    rng = np.random.default_rng(7)
    share = max(discordance, difference)
    discordant = rng.binomial(items, share, runs)
    right = rng.binomial(discordant, (share + difference) / (2 * share))
    p_values = [
        Difference((won - lost) / items, 0.0, math.inf, items, (won, lost)).p_value
        for won, lost in zip(right.tolist(), (discordant - right).tolist(), strict=True)
    ]
    return sum(p < level for p in p_values) / runs


@pytest.mark.parametrize(
    ("items", "discordance", "level"),
    [(100, 0.1, 0.05), (100, 0.4, 0.05), (1000, 0.05, 0.05), (25, 0.3, 0.05), (400, 0.2, 0.05 / 24)],
)
def test_right_or_wrong_items_find_that_difference_four_times_of_five(
    items: int, discordance: float, level: float
) -> None:
    difference = detectable_by_mcnemar(items, discordance, level)
    assert difference is not None
    assert found_by_mcnemar(items, discordance, difference, level) == pytest.approx(POWER, abs=0.03)
    assert found_by_mcnemar(items, discordance, 0.7 * difference, level) < POWER - 0.15


def test_too_few_items_find_no_difference_at_all() -> None:
    """Five items that all speak for one side have p = 0.0625."""
    assert detectable_by_mcnemar(5, 0.5) is None
    assert detectable_by_mcnemar(6, 0.5) is not None
    assert detectable_by_mcnemar(30, 0.0) is not None, "models that answered alike may still differ"


@pytest.mark.parametrize("items", [8, 60])
def test_graded_items_find_that_difference_four_times_of_five(items: int) -> None:
    rng = np.random.default_rng(3)
    deviation = 0.3
    difference = detectable_by_t(deviation / math.sqrt(items), items - 1)
    found = [
        paired_difference(row.tolist(), [0.0] * items).p_value < 0.05
        for row in rng.normal(difference, deviation, (2000, items))
    ]
    assert sum(found) / len(found) == pytest.approx(POWER, abs=0.03)
    assert detectable_by_t(0.1, math.inf) == pytest.approx(0.1 * (1.95996 + 0.84162), abs=1e-4)
