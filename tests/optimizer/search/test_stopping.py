"""A run ends when it was told to, not before and not after, and says why."""

from __future__ import annotations

from typing import Any

import pytest

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.search.stopping import StopRule, StopWatch


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_wall_time_counts_from_the_start_of_the_run() -> None:
    clock = Clock()
    watch = StopWatch(StopRule(hours=2), clock)
    clock.now += 7199.0
    assert watch.stop() is None
    clock.now += 1.0
    stop = watch.stop()
    assert stop is not None and stop.cause == "time" and "2 hours" in stop.reason


def test_little_expected_improvement_ends_a_run_only_in_a_row() -> None:
    watch = StopWatch(StopRule(improvement=0.01, asks=3))
    for expected in (0.001, 0.001, 0.02, 0.001, None, 0.001, 0.001):
        watch.proposed(expected)
        assert watch.stop() is None
    watch.proposed(0.0)
    stop = watch.stop()
    assert stop is not None and stop.cause == "improvement" and "3 proposals in a row" in stop.reason


def test_what_is_worth_just_the_limit_is_worth_going_on_for() -> None:
    watch = StopWatch(StopRule(improvement=0.01, asks=1))
    watch.proposed(0.01)
    assert watch.stop() is None


def test_without_a_rule_only_the_budget_ends_a_run() -> None:
    watch = StopWatch(StopRule())
    for _ in range(50):
        watch.proposed(0.0)
    assert watch.stop() is None


@pytest.mark.parametrize("given", [{"hours": -1}, {"asks": 0}, {"asks": 1.5}, {"improvement": "little"}, {"hour": 2}])
def test_what_cannot_be_meant_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="stop: "):
        StopRule.read(given)
