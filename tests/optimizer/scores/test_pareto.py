"""Front and hypervolume, against definitions worked out by hand or by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.scores.pareto import (
    MOST_EXACT,
    HypervolumeSoFar,
    along,
    distinct,
    epsilon_better,
    hypervolume,
    hypervolume_contributions,
    knee,
    measured_hypervolume,
    nondominated,
    nondominated_ranks,
    preferred,
)

points = st.integers(1, 3).flatmap(
    lambda m: st.lists(st.lists(st.integers(0, 4), min_size=m, max_size=m), min_size=1, max_size=8)
)


@given(points)
def test_front_is_what_nothing_dominates(rows: list[list[int]]) -> None:
    def dominates(a: list[int], b: list[int]) -> bool:
        return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [not any(dominates(other, row) for other in rows) for row in rows]
    assert nondominated(rows).tolist() == expected


@given(st.integers(1, 6).flatmap(lambda m: st.lists(st.lists(st.integers(0, 3), min_size=m, max_size=m), max_size=12)))
def test_ranks_are_the_fronts_that_are_left_when_the_better_ones_are_taken_away(rows: list[list[int]]) -> None:
    """MAP and MM-MO breed from the best fronts; with wrong ones a search goes on from merges that others beat."""
    ranks = nondominated_ranks(rows)
    assert len(ranks) == len(rows)
    for rank in range(len(rows)):
        left = np.flatnonzero(ranks >= rank)
        front = nondominated([rows[i] for i in left])
        assert (ranks[left] == rank).tolist() == front.tolist()


@given(points)
def test_hypervolume_counts_the_dominated_cells(rows: list[list[int]]) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(4) + 0.5] * len(rows[0]), indexing="ij"), -1).reshape(-1, len(rows[0]))
    cells = sum(any(all(cell <= row) for row in np.asarray(rows)) for cell in grid)
    assert hypervolume(rows, [0.0] * len(rows[0])) == pytest.approx(cells)


@given(points)
def test_a_growing_set_has_the_hypervolume_of_all_its_points(rows: list[list[int]]) -> None:
    reference = [0.5] * len(rows[0])
    so_far = HypervolumeSoFar(reference)
    for count, row in enumerate(rows, 1):
        so_far.add(row)
        assert so_far.measured.value == pytest.approx(hypervolume(rows[:count], reference))


def test_contribution_of_a_dominated_point_is_nothing() -> None:
    assert hypervolume_contributions([[1, 1], [0.5, 0.5]], [0, 0]).tolist() == pytest.approx([0.75, 0.0])


def test_knee_is_the_bulge_and_preferences_pull_to_their_side() -> None:
    front = [[0.0, 1.0], [0.8, 0.8], [1.0, 0.0]]
    assert knee(front) == 1
    assert preferred(front, [1, 0]) == 2
    assert preferred(front, [0, 1]) == 0
    assert preferred(front, [1, 1]) == 1


fronts = st.integers(2, 3).flatmap(
    lambda m: st.lists(st.lists(st.floats(0, 1), min_size=m, max_size=m), min_size=1, max_size=12)
)


@given(fronts, st.floats(0.0, 0.5))
def test_what_is_left_out_has_a_stand_in_within_epsilon(rows: list[list[float]], epsilon: float) -> None:
    values = np.array(rows)
    kept = distinct(epsilon_better(values, epsilon), np.argsort(-values.sum(axis=1), kind="stable").tolist())
    assert kept.any()
    for row in values[~kept]:
        assert (values[kept] + epsilon >= row).all(axis=1).any()
    # At 0 nothing of a front is left out but equal points.
    if epsilon == 0.0:
        assert {tuple(row) for row in values[nondominated(values)]} <= {tuple(row) for row in values[kept]}


def test_a_reference_direction_picks_the_point_that_goes_farthest_along_it() -> None:
    front = [[0.0, 1.0], [0.4, 0.9], [0.7, 0.7], [0.9, 0.4], [1.0, 0.0]]
    assert along(front, [1, 1]) == 2
    assert along(front, [2, 1]) == 3
    assert along(front, [1, 2]) == 1
    assert along(front, [1, 0]) == 4
    # The objectives' units make no difference.
    assert along((np.array(front) * [1000, 1e-3]).tolist(), [2, 1]) == 3
    with pytest.raises(ValueError, match="not all 0"):
        along(front, [0, 0])


CORNERS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
UNITS = [[1.0, 1.0, 1.0], [1000.0, 1e-3, 1.0]]


@pytest.mark.parametrize("unit", UNITS)
def test_the_knee_has_the_largest_sum_of_shares_in_whatever_units(unit: list[float]) -> None:
    front = np.array([[0.0, 1.0], [0.6, 0.6], [0.9, 0.35], [1.0, 0.0]]) * unit[:2] + 7.0
    assert knee(front) == 2


@pytest.mark.parametrize("unit", UNITS)
def test_a_preference_reaches_hollows_of_the_front_in_whatever_units(unit: list[float]) -> None:
    """A weighted sum would only ever pick one of the ends."""
    hollow = np.array([[0.0, 1.0], [0.45, 0.45], [1.0, 0.0]]) * unit[:2] - 7.0
    assert preferred(hollow, [1, 1]) == 1


@pytest.mark.parametrize("unit", UNITS)
def test_of_two_that_are_equal_in_the_worst_the_one_that_is_better_elsewhere_is_picked(unit: list[float]) -> None:
    front = np.array([*CORNERS, [0.5, 0.5, 0.8], [0.5, 0.9, 0.5]]) * unit
    assert preferred(front, [1, 1, 1]) == 4
    assert along(front, [1, 1, 1]) == 4


def test_who_is_better_in_nothing_than_one_that_stays_is_left_out() -> None:
    assert distinct([[False, True], [False, False]], [0, 1]).tolist() == [True, False]
    assert distinct([[False, True], [False, False]], [1, 0]).tolist() == [True, True]
    assert epsilon_better([[1.0], [0.5]], 0.5).tolist() == [[False, False], [False, False]]
    assert epsilon_better([[1.0], [0.5]], 0.4).tolist() == [[False, True], [False, False]]


def test_a_hypervolume_of_many_objectives_is_estimated_within_its_error() -> None:
    """Exact ones of eight objectives take seconds at 500 trials, after every trial."""
    rows = np.random.default_rng(0).uniform(size=(25, 8))
    few = measured_hypervolume(rows[:, :MOST_EXACT], [-0.1] * MOST_EXACT)
    assert few.standard_error == 0.0 and few.value == hypervolume(rows[:, :MOST_EXACT], [-0.1] * MOST_EXACT)
    measured = measured_hypervolume(rows, [-0.1] * 8)
    exact = hypervolume(rows, [-0.1] * 8)
    assert 0 < measured.standard_error < 0.005 * exact
    assert abs(measured.value - exact) < 4 * measured.standard_error
    assert measured_hypervolume(rows, [-0.1] * 8) == measured, "a command must say the same when it is called again"
    assert measured_hypervolume(rows[:-1], [-0.1] * 8).value <= measured.value
