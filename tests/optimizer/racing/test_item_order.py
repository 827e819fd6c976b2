"""Everybody answers a fair part of the items first, and all candidates together soon answer all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.optimizer.racing.item_order import least_asked_first, random_order, strata, stratified_order


@given(st.integers(20, 400), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_item_is_asked_once_whatever_the_anchors_answered(items: int, seed: int) -> None:
    references = (np.random.default_rng(seed).random((6, items)) < 0.5).astype(float)
    labels = strata(references)
    assert sorted(stratified_order(references)) == list(range(items))
    assert set(labels) == set(range(labels.max() + 1))


def test_every_beginning_holds_easy_and_hard_items_in_proportion() -> None:
    references = np.zeros((4, 400))
    references[:, :300] = 1.0  # everybody gets these right ...
    references[:2, 300:] = 1.0  # ... and on these they disagree
    order = stratified_order(references)
    for size in (20, 80, 200):
        assert abs(sum(index >= 300 for index in order[:size]) - size / 4) <= 1


def test_order_depends_on_seed_and_content_alone() -> None:
    ids = [f"item{number}" for number in range(50)]
    shuffled = list(reversed(ids))
    assert [ids[index] for index in random_order(ids, 3)] == [shuffled[index] for index in random_order(shuffled, 3)]
    assert random_order(ids, 3) != random_order(ids, 4)


def test_all_items_are_asked_before_any_is_asked_again() -> None:
    """A search that asks the same part again and again optimises on the luck of that part."""
    asked = np.zeros(100, dtype=np.int64)
    for turn in range(8):
        order = least_asked_first(range(100), asked, 10, seed=3, turn=turn)
        assert sorted(order) == list(range(100))
        asked[order[:20]] += 1
        assert asked.max() - asked.min() <= 1


def test_blocks_that_were_asked_equally_often_come_in_another_order_at_every_turn() -> None:
    asked = np.zeros(100, dtype=np.int64)
    orders = {tuple(least_asked_first(range(100), asked, 10, seed=3, turn=turn)) for turn in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize(("items", "count"), [(15, 1), (20, 2), (100, 6), (400, 6)])
def test_strata_are_few_and_none_is_tiny(items: int, count: int) -> None:
    """A stratum of one item would be asked of everybody, or of nobody."""
    sizes = np.bincount(strata(np.random.default_rng(0).random((3, items))))
    assert len(sizes) == count and sizes.min() >= 8
