"""One unit system: whatever the objectives are measured in, the surrogate sees anchors at 0 and 1."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mergefront.optimizer.samplers.common.units import FLOOR, compress_tail, normalise, normaliser_for

finite = st.floats(-1e6, 1e6)


def test_anchors_span_zero_to_one_in_every_objective_whatever_its_scale_and_direction() -> None:
    anchors = np.array([[0.61, 2e5], [0.32, 0.0], [0.45, 9e4]])
    normalised = normalise(normaliser_for([True, False], anchors), anchors)
    np.testing.assert_allclose(normalised.min(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(normalised.max(axis=0), 1.0)
    assert normalised[0, 1] == 0.0  # the largest L1 is the worst


def test_a_given_range_replaces_the_anchors_for_its_objective_only() -> None:
    normaliser = normaliser_for([True, False], np.array([[0.2, 10.0], [0.4, 30.0]]), [None, (100.0, 0.0)])
    np.testing.assert_allclose(normalise(normaliser, np.array([[0.3, 50.0]])), [[0.5, 0.5]])


@given(values=st.lists(finite, min_size=2, max_size=20))
def test_compression_keeps_order_bounds_collapses_and_leaves_the_rest_alone(values: list[float]) -> None:
    column, reference = np.sort(np.array(values))[:, None], np.array([-0.1])
    squeezed = compress_tail(column, reference)
    assert (np.diff(squeezed[:, 0]) >= 0).all()
    assert (squeezed >= FLOOR).all()
    above = column >= -0.1
    np.testing.assert_array_equal(squeezed[above], column[above])
