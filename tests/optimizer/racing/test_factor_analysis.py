"""The model of answers against plain dense computations, one item after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergefront.optimizer.racing.factor_analysis import Cells, Fit, first_candidates, fit, inverse


def answers(candidates: int, items: int, seed: int, asked: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers of two factors (0 where not asked), who was asked, and the true covariance between candidates."""
    rng = np.random.default_rng(seed)
    loadings, noise = rng.normal(0, 1, (candidates, 2)), rng.uniform(0.2, 0.6, candidates)
    values = loadings @ rng.normal(0, 1, (2, items)) + np.sqrt(noise)[:, None] * rng.normal(0, 1, (candidates, items))
    known = rng.random((candidates, items)) < asked
    known[0] |= ~known.any(axis=0)
    return np.where(known, values, 0.0), known, loadings @ loadings.T + np.diag(noise)


def fitted(values: np.ndarray, known: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, Cells, Fit]:
    order, cells = Cells.of(known)
    values, known = values[:, order], known[:, order]
    return (
        values,
        known,
        cells,
        fit(values, cells.asked, cells, iterations, first_candidates(values, cells.asked, cells)),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_many_matrices_are_inverted_as_each_alone(seed: int, size: int, count: int) -> None:
    roots = np.random.default_rng(seed).normal(0, 1, (count, size, size))
    matrices = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(size)
    expected, given_ones = np.linalg.inv(matrices), matrices.copy()
    assert np.allclose(inverse(matrices), expected, rtol=1e-8, atol=1e-9)
    assert (matrices == given_ones).all(), "whoever asks keeps its matrices"


@pytest.mark.parametrize("asked", [1.0, 0.4])
def test_items_factors_are_those_of_a_normal_vector_that_is_known_in_part(asked: float) -> None:
    values, known, cells, found = fitted(*answers(9, 40, 1, asked)[:2], 3)
    means, loadings, noise = found.candidates.means, found.candidates.loadings, found.candidates.noise
    spread = found.candidates.spread(found.covariances)
    for item in range(values.shape[1]):
        who = known[:, item]
        between = loadings[who] @ loadings[who].T + np.diag(noise[who])
        gain = loadings[who].T @ np.linalg.inv(between)
        left = np.eye(loadings.shape[1]) - gain @ loadings[who]
        assert np.allclose(found.factors[item], gain @ (values[who, item] - means[who]))
        assert np.allclose(found.covariances[cells.number[item]], left)
        assert np.allclose(spread[:, cells.number[item]], np.diag(loadings @ left @ loadings.T) + noise)


def test_the_first_guess_has_the_answers_variances_and_what_two_have_in_common() -> None:
    values, _, covariance = answers(8, 20_000, 2, 1.0)
    order, cells = Cells.of(np.ones(values.shape, dtype=bool))
    start = first_candidates(values[:, order], cells.asked, cells)
    implied = start.loadings @ start.loadings.T
    left = np.diag(implied) + start.noise - values.var(axis=1)
    assert (left > -0.02).all() and (left < 0.11 * values.var()).all(), "no noise is a tenth of the mean variance"
    off = ~np.eye(len(covariance), dtype=bool)
    assert np.corrcoef(implied[off], covariance[off])[0, 1] > 0.97


@pytest.mark.parametrize(("candidates", "factors"), [(2, 1), (4, 1), (5, 2), (6, 2), (7, 3), (40, 8)])
def test_there_is_at_most_one_factor_for_two_candidates(candidates: int, factors: int) -> None:
    """More than the answers can tell apart would fit their noise."""
    values, known, _ = answers(candidates, 400, 3, 1.0)
    assert fitted(values, known, 1)[3].factors.shape[1] == factors


def test_answers_of_few_candidates_show_what_they_have_in_common() -> None:
    """Two thirds of the answers are missing, and those that two candidates both gave are few."""
    values, known, covariance = answers(10, 6000, 4, 0.35)
    found = fitted(values, known, 30)[3].candidates
    implied = found.loadings @ found.loadings.T + np.diag(found.noise)
    assert np.abs(implied - covariance).max() < 0.25 and np.abs(found.means).max() < 0.1
