"""What "better beyond noise" means: the numbers behind every claim that a merge beats an anchor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mergefront.optimizer.scores.comparison import (
    Difference,
    holm,
    mean_interval,
    paired_difference,
    unpaired_difference,
    weighted_sum,
)

numbers = st.floats(-100, 100)
rows = st.lists(st.tuples(numbers, numbers), min_size=3, max_size=40)


@given(rows)
def test_paired_difference_is_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column) + 0.5 for column in zip(*pairs, strict=True))  # never right or wrong alone
    if np.ptp(first - second) < 1e-6:
        return
    made = paired_difference(list(first), list(second))
    expected = stats.ttest_rel(first, second)
    assert made.mean == pytest.approx(float(np.mean(first - second)), abs=1e-9)
    assert made.standard_error == pytest.approx(float(stats.sem(first - second)), rel=1e-6)
    floor = 2.0 ** (1 - len(pairs))
    assert made.p_value == pytest.approx(max(float(expected.pvalue), floor), rel=1e-4, abs=1e-12)


def test_pairing_finds_a_small_difference_that_separate_errors_hide() -> None:
    hard = [float(index % 2) for index in range(100)]
    better = [1.0 if index % 10 == 0 else score for index, score in enumerate(hard)]
    paired = paired_difference(better, hard)
    error = 0.05
    unpaired = unpaired_difference(sum(better) / 100, error, sum(hard) / 100, error)
    assert paired.mean == pytest.approx(unpaired.mean) == pytest.approx(0.1)
    assert paired.p_value < 0.01 < 0.1 < unpaired.p_value


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.sampled_from([1.0, -1.0]))
def test_right_or_wrong_items_are_compared_by_the_exact_test(wins: int, losses: int, ties: int, sign: float) -> None:
    """A t-test on a handful of disagreements claims wins that are coin flips."""
    if not wins + losses + ties:
        return
    first = [sign] * wins + [0.0] * losses + [sign] * ties
    second = [0.0] * wins + [sign] * losses + [sign] * ties
    found = paired_difference(first, second)
    expected = stats.binomtest(wins, wins + losses).pvalue if wins != losses else 1.0
    assert found.p_value == pytest.approx(float(expected), rel=1e-9)
    assert found.discordant == ((wins, losses) if sign > 0 else (losses, wins))


def test_a_score_between_right_and_wrong_has_no_exact_test() -> None:
    assert paired_difference([1.0, 0.5, 1.0], [0.0, 0.0, 0.0]).discordant is None


def test_a_few_items_that_all_agree_prove_little() -> None:
    assert paired_difference([1.0] * 3, [0.0] * 3).p_value == pytest.approx(0.25)
    assert paired_difference([1.0] * 40, [0.0] * 40).p_value < 1e-9
    assert paired_difference([1.0], [0.0]).p_value == 1.0


def test_exact_numbers_differ_or_do_not() -> None:
    assert unpaired_difference(0.2, None, 0.1, None).p_value == 0.0
    assert unpaired_difference(0.1, None, 0.1, 0.0).p_value == 1.0
    assert unpaired_difference(0.2, 0.1, 0.1, None).p_value == pytest.approx(0.3173, abs=1e-4)


def test_unequal_items_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 2.0])


@given(st.lists(st.tuples(numbers, st.floats(0.01, 10), st.integers(1, 50)), min_size=1, max_size=5))
def test_weighted_sum_adds_means_and_variances(parts: list[tuple[float, float, int]]) -> None:
    differences = [Difference(mean, error, degrees, degrees + 1) for mean, error, degrees in parts]
    weights = [1.0 / len(parts)] * len(parts)
    made = weighted_sum(differences, weights)
    assert made.mean == pytest.approx(sum(mean for mean, _, _ in parts) / len(parts), abs=1e-9)
    assert made.standard_error == pytest.approx(math.sqrt(sum(error**2 for _, error, _ in parts)) / len(parts))
    degrees = [freedom for _, _, freedom in parts]
    assert min(degrees) * (1 - 1e-9) <= made.degrees_of_freedom <= sum(degrees) * (1 + 1e-9)


def test_weighted_sum_of_one_exact_and_one_noisy_part_keeps_the_noise() -> None:
    made = weighted_sum([Difference(1.0), Difference(0.5, 0.2, 9, 10)], [0.5, 0.5])
    assert (made.mean, made.standard_error) == (pytest.approx(0.75), pytest.approx(0.1))
    assert made.degrees_of_freedom == pytest.approx(9)
    assert made.pairs == 10


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_only_ever_raises_p_values_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    ordered = [corrected[index] for index in sorted(range(len(p_values)), key=p_values.__getitem__)]
    assert ordered == sorted(ordered)
    assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_picking_from_many_comparisons_counts_those_that_were_left_out() -> None:
    """A study that shows the two best of five comparisons would call noise a win."""
    assert holm([0.01, 0.02], comparisons=5) == pytest.approx([0.05, 0.08])
    assert holm([0.01, 0.02, 0.5], comparisons=2) == pytest.approx([0.03, 0.04, 0.5])


def test_a_noisy_part_that_is_not_paired_takes_the_floor_of_the_paired_ones_away() -> None:
    paired, unpaired = Difference(1.0, 0.0, 4, 5), Difference(1.0, 0.1)
    assert weighted_sum([paired, unpaired], [0.5, 0.5]).pairs is None
    assert weighted_sum([paired, unpaired], [0.5, 0.5]).p_value < 2.0**-4
    assert weighted_sum([paired, paired], [0.5, 0.5]).pairs == 10


@pytest.mark.parametrize("level", [0.8, 0.95])
@given(count=st.integers(1, 60), data=st.data())
def test_the_interval_of_right_and_wrong_is_wilsons_and_of_numbers_students(
    level: float, count: int, data: st.DataObject
) -> None:
    right = data.draw(st.integers(0, count))
    expected = stats.binomtest(right, count).proportion_ci(level, method="wilson")
    assert mean_interval([1.0] * right + [0.0] * (count - right), level) == pytest.approx(expected, abs=1e-9)
    scores = np.random.default_rng(count).normal(size=count + 2)
    expected = stats.t.interval(level, count + 1, scores.mean(), stats.sem(scores))
    assert mean_interval(scores.tolist(), level) == pytest.approx(expected)
    assert mean_interval([0.5], level) == (-math.inf, math.inf)


def test_bounds_of_none_right_and_all_right_are_exactly_0_and_1() -> None:
    for count in (7, 30, 60, 200, 1319):
        assert mean_interval([0.0] * count)[0] == 0.0 and mean_interval([1.0] * count)[1] == 1.0
