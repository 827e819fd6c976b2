"""A run ends when it was told to, not before and not after, and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.search.stopping import StopRule, StopWatch, has_common_cause


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("hours", "seconds"), [(2, 7200.0), (0.25, 900.0), (1.5, 5400.0)])
def test_wall_time_counts_from_the_start_of_the_run(hours: float, seconds: float) -> None:
    clock = Clock()
    watch = StopWatch(StopRule(hours=hours), clock)
    clock.now += seconds - 1.0
    assert watch.stop() is None
    clock.now += 1.0
    stop = watch.stop()
    assert stop is not None and stop.cause == "time" and f"{hours} hours" in stop.reason


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


def test_a_corner_that_breaks_down_is_no_common_cause_however_often_it_is_tried() -> None:
    """A search whose best merges lie beside such a corner ended with most of its budget unspent."""
    rng = np.random.default_rng(0)
    worked = list(rng.random((15, 3)) * 0.6)
    corner = list(0.8 + 0.2 * rng.random((12, 3)))
    assert not has_common_cause(corner, worked)
    edge = [point + 0.1 * (-1) ** k for k, point in enumerate(np.full((8, 3), 0.7))]
    assert not has_common_cause(edge, [*worked, *(point - 0.05 for point in edge)])


@pytest.mark.parametrize("worked", [0, 6, 15, 100])
def test_failures_where_others_worked_are_a_common_cause(worked: int) -> None:
    """A full disk would cost the rest of the budget, an evaluation after the other."""
    rng = np.random.default_rng(1)
    done, failed = list(rng.random((worked, 3))), list(rng.random((40, 3)))
    assert has_common_cause(failed, done) and not has_common_cause(failed[:4], done)
    if worked in (0, 100):
        assert has_common_cause(failed[:5], done)
    anchors_alone: list[np.ndarray | None] = [None] * 8
    assert has_common_cause(anchors_alone, done)


@pytest.mark.parametrize(("worked", "stops"), [(8, False), (15, True)])
def test_a_failure_right_where_another_candidate_worked_is_as_rare_as_one_of_all_that_worked(
    worked: int, stops: bool
) -> None:
    """Five in a row after a few successes may be chance; the search would end with its budget unspent."""
    done = list(np.linspace(0.0, 1.0, worked)[:, None].repeat(2, axis=1))
    assert has_common_cause([point + 1e-4 for point in done[:5]], done) is stops
