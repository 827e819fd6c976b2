"""What candidates answered between them says what each would have answered, and how sure that is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mergefront.optimizer.racing.joint_scores import JointModel, joint_estimates


def merge_margins(items: int, seed: int, count: int = 12) -> np.ndarray:
    """Margins (count x items): candidates along a line of merges, near ones answering alike."""
    rng = np.random.default_rng(seed)
    skill = rng.normal(0, 1.5, (2, items))
    place = np.linspace(0, 1, count)[:, None]
    noise = rng.normal(0, 0.5, (count, items))
    return (1 - place) * skill[0] + place * skill[1] + noise + 0.3


def merges(items: int, seed: int, count: int = 12) -> np.ndarray:
    """Right or wrong (count x items) by these margins."""
    return (merge_margins(items, seed, count) > 0).astype(float)


def partly_asked(truth: np.ndarray, seed: int) -> np.ndarray:
    """A tenth of the items is asked of everybody, another tenth of each candidate alone, in blocks."""
    count, items = truth.shape
    order = np.random.default_rng(seed + 1000).permutation(items)
    core, blocks = order[: items // 10], np.array_split(order[items // 10 :], 9)
    seen = np.full(truth.shape, np.nan)
    for row in range(count):
        asked = np.concatenate([core, blocks[row % 9]])
        seen[row, asked] = truth[row, asked]
    return seen


def independent(items: int, seed: int, count: int) -> np.ndarray:
    """Margins of candidates that have nothing in common."""
    rng = np.random.default_rng(seed)
    return rng.random((count, 1)) - rng.random((count, items))


def copies(items: int, seed: int, count: int) -> np.ndarray:
    """Margins of five models, each many times over."""
    return np.repeat(merge_margins(items, seed, 5), count // 5, axis=0)


def decided_by_few_items(items: int, seed: int, count: int) -> np.ndarray:
    """Margins of factors with heavy tails."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_t(1.5, (2, items))
    own = rng.normal(0, 0.3, (count, items)) + rng.normal(0.5, 0.5, (count, 1))
    return rng.normal(0, 1, (count, 2)) @ factors + own


def raced(truth: np.ndarray, share: int, seed: int) -> np.ndarray:
    """Everybody answers the same quarter of ``share`` items, and the rest in blocks of half of it, in turn."""
    count, items = truth.shape
    order = np.random.default_rng(seed + 1000).permutation(items)
    core, own = order[: share // 4], order[share // 4 :]
    seen = np.full(truth.shape, np.nan)
    for row in range(count):
        asked = np.append(core, np.roll(own, -row * (share // 2))[: share - len(core)])
        seen[row, asked] = truth[row, asked]
    return seen


def test_all_items_give_the_plain_mean_and_its_standard_error() -> None:
    truth = merges(200, 0)
    for one, row in zip(joint_estimates(truth), truth, strict=True):
        assert one.mean == pytest.approx(row.mean())
        assert one.standard_error == pytest.approx(row.std(ddof=1) / np.sqrt(200))
        assert one.unasked_error == 0


def test_estimates_beat_the_plain_mean_by_far_and_their_error_bars_hold_the_truth() -> None:
    errors, plain, stated = [], [], []
    for seed in range(25):
        truth = merges(400, seed)
        seen = partly_asked(truth, seed)
        found = joint_estimates(seen)
        errors += [one.mean - row.mean() for one, row in zip(found, truth, strict=True)]
        plain += (np.nanmean(seen, axis=1) - truth.mean(axis=1)).tolist()
        stated += [one.unasked_error for one in found]
    assert abs(np.mean(errors)) < 0.004
    assert np.std(errors) < 0.88 * np.std(plain)
    assert 0.65 < np.std(errors) / np.sqrt(np.mean(np.square(stated))) < 1.05


def test_margins_say_more_than_right_and_wrong() -> None:
    """A search with margins would have to ask twice the items for the same scores."""
    errors, coarse, stated = [], [], []
    for seed in range(15):
        margins = merge_margins(400, seed, 24)
        seen = partly_asked(margins, seed)
        answers = np.where(np.isnan(seen), np.nan, seen > 0)
        truth = (margins > 0).mean(axis=1)
        found = joint_estimates(answers, seen)
        errors += [one.mean - true for one, true in zip(found, truth, strict=True)]
        coarse += [one.mean - true for one, true in zip(joint_estimates(answers), truth, strict=True)]
        stated += [one.unasked_error for one in found]
    assert np.std(errors) < 0.75 * np.std(coarse)
    assert 0.6 < np.std(errors) / np.sqrt(np.mean(np.square(stated))) < 1.2


def test_margins_that_do_not_decide_the_scores_are_left_alone() -> None:
    margins = partly_asked(merge_margins(200, 5), 5)
    answers = np.where(np.isnan(margins), np.nan, margins > 0)
    plain = joint_estimates(answers)
    assert joint_estimates(answers, margins) != plain
    assert joint_estimates(answers, margins - 1.0) == plain
    one_missing = margins.copy()
    one_missing[3, np.flatnonzero(~np.isnan(margins[3]))[0]] = np.nan
    assert joint_estimates(answers, one_missing) == plain


def test_skewed_margins_bend_the_estimates_little() -> None:
    """The model takes margins for normal; where they are not, the items answered have the last word."""
    rng = np.random.default_rng(0)
    errors, plain = [], []
    for seed in range(25):
        margins = rng.exponential(1.0, (12, 400)) - rng.uniform(0.2, 2.0, (12, 1))
        seen = partly_asked(margins, seed)
        answers = np.where(np.isnan(seen), np.nan, seen > 0)
        truth = (margins > 0).mean(axis=1)
        errors += [one.mean - true for one, true in zip(joint_estimates(answers, seen), truth, strict=True)]
        plain += (np.nanmean(answers, axis=1) - truth).tolist()
    assert np.sqrt(np.mean(np.square(errors))) < 1.25 * np.std(plain)


def test_candidates_that_answer_independently_lose_little() -> None:
    rng = np.random.default_rng(0)
    errors, plain = [], []
    for seed in range(25):
        truth = (rng.random((12, 400)) < rng.random((12, 1))).astype(float)
        seen = partly_asked(truth, seed)
        errors += [one.mean - row.mean() for one, row in zip(joint_estimates(seen), truth, strict=True)]
        plain += (np.nanmean(seen, axis=1) - truth.mean(axis=1)).tolist()
    assert np.std(errors) < 1.1 * np.std(plain)


def test_the_unit_of_the_scores_changes_nothing() -> None:
    seen = partly_asked(merges(200, 1), 1)
    for one, scaled in zip(joint_estimates(seen), joint_estimates(5.0 - 1000.0 * seen), strict=True):
        assert scaled.mean == pytest.approx(5.0 - 1000.0 * one.mean, abs=1e-6)
        assert scaled.standard_error == pytest.approx(1000.0 * one.standard_error, rel=1e-6)


def test_a_few_equal_answers_are_no_certainty() -> None:
    truth = merges(200, 2)
    seen = partly_asked(truth, 2)
    seen[3] = np.nan
    seen[3, :16] = 1.0
    assert joint_estimates(seen)[3].unasked_error > 0.02


def test_items_that_nobody_answered_are_expected_to_be_like_the_others() -> None:
    truth = merges(200, 3)
    seen = np.hstack([truth, np.full((12, 200), np.nan)])
    for one, row in zip(joint_estimates(seen), truth, strict=True):
        assert one.mean == pytest.approx(row.mean(), abs=1e-3)
        assert one.unasked_error > 0


def test_who_answered_nothing_has_no_estimate() -> None:
    seen = partly_asked(merges(100, 4), 4)
    seen[2] = np.nan
    with pytest.raises(ValueError, match="at least one item"):
        joint_estimates(seen)


def test_margins_that_are_all_zero_are_no_certainty_either_way() -> None:
    """A broken merge that finds every choice equally likely would give scores that are no numbers."""
    answers = partly_asked(merges(200, 6), 6)
    for one, row in zip(joint_estimates(answers, 0.0 * answers), answers, strict=True):
        assert one.mean == pytest.approx(np.nanmean(row), abs=0.15)
        assert one.unasked_error > 0


def test_margins_that_are_the_same_for_all_are_no_certainty_either() -> None:
    """Nothing is left to measure errors by; the estimates would be no numbers."""
    margins = np.repeat([[1.0, -1.0, 1.0, np.nan]], 11, axis=0)
    answers = np.where(np.isnan(margins), np.nan, margins > 0)
    for one in joint_estimates(answers, margins):
        assert 0.0 <= one.mean <= 1.0 and one.unasked_error > 0.1


@pytest.mark.parametrize("margins", [True, False])
@pytest.mark.parametrize(
    ("made", "least", "most"),
    [(merge_margins, 0.93, 1.45), (copies, 0.93, 2.5), (decided_by_few_items, 0.9, 1.3), (independent, 0.8, 1.3)],
)
@pytest.mark.parametrize(("items", "share"), [(60, 16), (240, 48)])
def test_the_truth_lies_within_two_stated_errors(
    items: int, share: int, made: Callable[[int, int, int], np.ndarray], least: float, most: float, margins: bool
) -> None:
    """A front that is too sure of its scores drops the better merge, and one that is not sure enough drops none.

    On data of the model and on data that it does not expect.
    """
    errors, stated = [], []
    for seed in range(6):
        smooth = made(items, seed, 40)
        seen = raced(smooth, share, seed)
        answers = np.where(np.isnan(seen), np.nan, seen > 0)
        found = joint_estimates(answers, seen if margins else None)
        errors += [one.mean - true for one, true in zip(found, (smooth > 0).mean(axis=1), strict=True)]
        stated += [one.unasked_error for one in found]
    assert np.mean(np.abs(errors) <= 2 * np.array(stated)) >= least
    assert np.mean(stated) <= most * np.sqrt(np.mean(np.square(errors)))


@pytest.mark.parametrize("items", [17, 60, 1000])
def test_equal_answers_are_no_certainty(items: int) -> None:
    """Forty candidates that all answered the same 16 items rightly were said to score 1.000 +- 0.012 on all."""
    seen = np.full((40, items), np.nan)
    seen[:, :16] = 1.0
    for one in joint_estimates(seen):
        assert one.mean == 1.0
        chance = 1 / 18
        assert one.unasked_error == pytest.approx(np.sqrt(chance * (1 - chance) * (1 / 16 - 1 / items)))
        assert one.standard_error >= np.sqrt(chance * (1 - chance) / items)


def test_who_answered_the_same_items_as_its_like_knows_nothing_of_the_others() -> None:
    """Copies predict each other on the items that all of them answered, and say nothing of the rest."""
    errors, stated = [], []
    for seed in range(20):
        truth = (copies(60, seed, 40) > 0).astype(float)
        seen = np.full(truth.shape, np.nan)
        asked = np.random.default_rng(seed).permutation(60)[:16]
        seen[:, asked] = truth[:, asked]
        found = joint_estimates(seen)
        errors += [one.mean - row.mean() for one, row in zip(found, truth, strict=True)]
        stated += [one.unasked_error for one in found]
    assert np.mean(np.abs(errors) <= 2 * np.array(stated)) >= 0.93


def test_the_more_items_nobody_answered_the_less_is_known_of_the_sum() -> None:
    """A task of thousands of items, of which a race has asked a few: their sum is the score's error."""
    scores = raced(merge_margins(120, 0, 30), 16, 0)
    sums = []
    for more in (0, 20, 60, 200):
        model = JointModel.of(scores, None, 120 + more)
        assert model is not None
        sums.append([one.unasked_error * (120 + more) for one in model.estimates])
    assert (np.diff(sums, axis=0) > 0.0).all()


@pytest.mark.parametrize("with_margins", [True, False])
def test_a_later_candidate_is_as_unsure_of_what_nobody_answered_as_its_twin_that_was_fitted(with_margins: bool) -> None:
    """It predicts from the others' means, which are as unsure: a race would keep or drop it by a wrong error."""
    ratios = []
    for seed in range(12):
        margins = copies(60, seed, 40)
        asked = np.random.default_rng(seed).permutation(60)[:16]
        seen = np.full(margins.shape, np.nan)
        seen[:, asked] = margins[:, asked]
        scores = np.where(np.isnan(seen), np.nan, seen > 0)
        model = JointModel.of(scores, seen if with_margins else None, 60)
        assert model is not None
        for row in range(0, 40, 7):
            later = model.read(asked, scores[row, asked], seen[row, asked] if with_margins else None)
            ratios.append(later.unasked_error / model.estimates[row].unasked_error)
    assert 0.85 < np.mean(ratios) < 1.2


@pytest.mark.parametrize("seed", range(30))
def test_no_answers_make_a_score_surer_than_their_number(seed: int) -> None:
    """Whatever was answered, and by whom."""
    rng = np.random.default_rng(seed)
    count, items = int(rng.integers(1, 15)), int(rng.integers(2, 50))
    continuous = seed % 3 == 0
    truth = rng.normal(0, 2, (count, items)) if continuous else (rng.random((count, items)) < rng.random((count, 1)))
    seen = np.where(rng.random((count, items)) < rng.choice([0.1, 0.5, 0.9, 1.0]), truth.astype(float), np.nan)
    seen[:, 0] = truth[:, 0]
    asked = (~np.isnan(seen)).sum(axis=1)
    chance = 1 / (asked + 2)
    least = chance * (1 - chance) * (float(np.nanvar(seen)) if continuous else 1.0)
    for one, known, variance, row in zip(joint_estimates(seen), asked, least, seen, strict=True):
        assert np.isfinite([one.mean, one.standard_error, one.unasked_error]).all()
        assert one.unasked_error**2 >= variance * (1 / known - 1 / items) - 1e-12
        assert one.standard_error**2 >= one.unasked_error**2 + variance / items - 1e-12
        if known == items:
            assert one.unasked_error == 0 and one.mean == pytest.approx(row.mean())
