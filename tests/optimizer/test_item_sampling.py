"""A part of the items says what all of them would have, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.optimizer.item_sampling import difference, estimate, informative_order, random_order, strata


def anchors_and_candidate(items: int, seed: int, anchors: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Items of very different difficulty; the candidate's answers go with the anchors'."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 3, items)
    ability = rng.normal(0, 1, anchors + 1)
    right = rng.random((anchors + 1, items)) < 1 / (1 + np.exp(difficulty - ability[:, None]))
    return right[:-1].astype(float), right[-1].astype(float)


@given(st.integers(20, 400), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_item_is_asked_once_whatever_the_anchors_answered(items: int, seed: int) -> None:
    references, _ = anchors_and_candidate(items, seed)
    order, labels = informative_order(references, range(items))
    assert sorted(order) == list(range(items))
    assert set(labels) == set(range(labels.max() + 1))


def test_items_on_which_the_anchors_disagree_come_first() -> None:
    references = np.zeros((4, 400))
    references[:, :300] = 1.0  # nobody fails on these ...
    references[:2, 300:] = 1.0  # ... and on these half of them do
    order, _ = informative_order(references, range(400))
    disputed = sum(index >= 300 for index in order[:80])
    assert disputed > 40, "a quarter of the items are disputed, and more than half of the first ones must be"


def test_order_depends_on_seed_and_content_alone() -> None:
    ids = [f"item{number}" for number in range(50)]
    shuffled = list(reversed(ids))
    assert [ids[index] for index in random_order(ids, 3)] == [shuffled[index] for index in random_order(shuffled, 3)]
    assert random_order(ids, 3) != random_order(ids, 4)


def test_all_items_give_the_plain_mean_and_its_standard_error() -> None:
    references, scores = anchors_and_candidate(200, 1)
    labels = strata(references)
    everything = estimate(scores, np.arange(200), labels, references, 200)
    assert everything.mean == pytest.approx(scores.mean())
    assert everything.standard_error == pytest.approx(scores.std(ddof=1) / np.sqrt(200))


def test_estimate_from_a_part_is_unbiased_and_its_error_bar_holds_the_truth() -> None:
    """The sampling error against all items must be what the standard error says."""
    errors, spread, plain = [], [], []
    for seed in range(300):
        references, scores = anchors_and_candidate(400, seed)
        base = list(np.random.default_rng(seed + 10_000).permutation(400))
        order, labels = informative_order(references, base)
        asked = np.array(order[:60])
        found = estimate(scores[asked], asked, labels, references, 400)
        whole = estimate(scores, np.arange(400), labels, references, 400)
        errors.append(found.mean - scores.mean())
        spread.append(np.sqrt(max(found.standard_error**2 - whole.standard_error**2, 0)))
        plain.append(scores[base[:60]].mean() - scores.mean())
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(300)
    assert np.std(errors) < 0.85 * np.std(plain), "regression and strata must beat a plain sample of as many items"
    assert 0.8 < np.std(errors) / np.sqrt(np.mean(np.square(spread))) < 1.2


def test_difference_is_exact_when_all_items_were_asked() -> None:
    references, scores = anchors_and_candidate(100, 2)
    compared = difference(scores, references[0], np.arange(100), strata(references), 100)
    assert compared.mean == pytest.approx((scores - references[0]).mean())
    assert compared.standard_error == 0
