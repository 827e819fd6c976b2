"""The boxes of the improvable region: their improvement is the hypervolume that a point really adds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.samplers.common.box_decomposition import nondominated_boxes
from mergefront.optimizer.scores.pareto import hypervolume


def improvement(point: np.ndarray, front: np.ndarray, reference: np.ndarray) -> float:
    lower, upper, _ = nondominated_boxes(front[None], reference)
    return float(np.maximum(np.minimum(point, upper) - lower, 0.0).prod(axis=1).sum())


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@given(data=st.data())
def test_the_boxes_add_up_to_the_hypervolume_gained(objectives: int, data: st.DataObject) -> None:
    # Few distinct coordinates: ties, duplicates, dominated points and points below the reference all occur.
    coordinate = st.sampled_from([-0.3, -0.1, 0.0, 0.2, 0.5, 0.6, 1.0]) | st.floats(-0.5, 1.5)
    rows = data.draw(st.lists(st.lists(coordinate, min_size=objectives, max_size=objectives), max_size=9))
    point = np.array(data.draw(st.lists(coordinate, min_size=objectives, max_size=objectives)))
    front, reference = np.array(rows).reshape(-1, objectives), np.full(objectives, -0.1)
    gained = hypervolume(np.vstack([front, point]), reference.tolist()) - hypervolume(front, reference.tolist())
    assert improvement(point, front, reference) == pytest.approx(gained, abs=1e-9)


def test_without_a_front_everything_above_the_reference_improves() -> None:
    lower, upper, front = nondominated_boxes(np.zeros((2, 0, 2)), np.array([-0.1, -0.1]))
    np.testing.assert_array_equal(lower, [[-0.1, -0.1]] * 2)
    assert np.isinf(upper).all()
    np.testing.assert_array_equal(front, [0, 1])


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_boxes_of_several_fronts_are_those_of_each(objectives: int) -> None:
    """A front that took its neighbour's boxes would be improved where it is not."""
    rng = np.random.default_rng(0)
    fronts, reference = rng.uniform(-0.3, 1.0, (5, 12, objectives)), np.full(objectives, -0.1)
    fronts[2] = -1.0
    lower, upper, front = nondominated_boxes(fronts, reference)
    alone = [nondominated_boxes(one[None], reference) for one in fronts]
    np.testing.assert_array_equal(lower, np.concatenate([boxes[0] for boxes in alone]))
    np.testing.assert_array_equal(upper, np.concatenate([boxes[1] for boxes in alone]))
    np.testing.assert_array_equal(front, np.repeat(np.arange(5), [len(boxes[0]) for boxes in alone]))
