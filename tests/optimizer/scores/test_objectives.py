"""Objectives of very different units are compared in one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.objectives import Normaliser, Objective, objectives_from
from mergefront.optimizer.scores.pareto import hypervolume

finite = st.floats(-1e12, 1e12)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=6))
def test_anchors_lie_between_zero_and_one_whatever_their_unit(rows: list[tuple[float, float]]) -> None:
    objectives = (Objective("accuracy"), Objective("delta_l1", "minimize"))
    normaliser = Normaliser.from_anchors(objectives, rows)
    for row in rows:
        for value in normaliser.normalise(row):
            assert -1e-6 <= value <= 1 + 1e-6


def test_smaller_is_better_after_turning_round() -> None:
    normaliser = Normaliser.from_anchors((Objective("loss", "minimize"),), [[2.0], [4.0]])
    assert normaliser.normalise([2.0]) == [1.0]
    assert normaliser.normalise([4.0]) == [0.0]
    assert normaliser.normalise([1.0]) == [1.5]


def test_a_range_given_by_the_user_beats_the_anchors() -> None:
    normaliser = Normaliser.from_anchors((Objective("acc", range=(0.0, 0.5)),), [[0.9], [0.1]])
    assert normaliser.normalise([0.25]) == [0.5]


def test_a_constant_objective_is_no_division_by_zero() -> None:
    normaliser = Normaliser.from_anchors((Objective("acc"),), [[0.3], [0.3]])
    assert normaliser.normalise([0.3]) == [0.0]


def test_rounding_is_no_unit() -> None:
    """Copies of one model differ in the last digits; a search of them would show a large hypervolume of nothing."""
    normaliser = Normaliser.from_anchors((Objective("loss", "minimize"),), [[4.1893271773], [4.1893272211]])
    assert normaliser.normalise([4.1893269]) == pytest.approx([0.0], abs=1e-6)


def test_mistakes_in_objectives_are_named() -> None:
    with pytest.raises(UserError, match="named twice"):
        objectives_from(["a", "a"])
    with pytest.raises(UserError, match="'maximise'"):
        objectives_from([{"name": "a", "direction": "maximise"}])
    with pytest.raises(UserError, match="at least one"):
        objectives_from([])


@pytest.mark.parametrize(
    ("anchors", "value", "normalised"),
    [
        ([[0.3], [0.3]], 0.6, 1.0),
        ([[-4.0], [-4.0]], -2.0, 0.5),
        ([[0.0]], 0.25, 0.25),
        ([], 0.25, 0.25),
        ([], -3.0, -3.0),
    ],
)
def test_where_anchors_agree_their_size_is_the_unit(
    anchors: list[list[float]], value: float, normalised: float
) -> None:
    """A loss of 1e-4 would count nothing beside an accuracy, and one of 1e4 everything."""
    normaliser = Normaliser.from_anchors((Objective("acc"),), anchors)
    assert normaliser.normalise([value]) == pytest.approx([normalised])


def test_as_bad_as_the_worst_anchor_in_one_objective_still_counts_for_the_others() -> None:
    normaliser = Normaliser.from_anchors((Objective("a"), Objective("b", "minimize")), [[2.0, 4.0], [6.0, 3.0]])
    specialist = normaliser.normalise([2.0, 3.0])
    assert hypervolume([specialist], normaliser.reference_point) == pytest.approx(0.1 * 1.1)
