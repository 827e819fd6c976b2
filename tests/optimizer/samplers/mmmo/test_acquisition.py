"""The acquisition is the expected hypervolume gain, in the same units as the surrogate."""

from __future__ import annotations

import numpy as np
import pytest

from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process, fit_surrogate
from mergefront.optimizer.samplers.gaussian_process.item_process import fit_by_items
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, MATERN_WITH_TREND, SMOOTH, Kernel
from mergefront.optimizer.samplers.gaussian_process.posterior import Surrogate
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement
from mergefront.optimizer.scores.pareto import hypervolume


def told(n: int, d: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, centres = rng.random((n, d)), rng.random((m, d))
    return x, np.stack([1.0 - 2.0 * ((x - centre) ** 2).sum(axis=1) for centre in centres], axis=1)


def acquisition(
    surrogate: Surrogate, pending: np.ndarray, samples: int, m: int, outside: np.ndarray | None = None
) -> HypervolumeImprovement:
    base_samples = np.random.default_rng(7).standard_normal((samples, len(surrogate.x) + len(pending), m))
    outside = np.zeros((0, m)) if outside is None else outside
    return HypervolumeImprovement(surrogate, pending, np.full(m, -0.1), outside, base_samples)


def joint_samples(surrogate: Surrogate, points: np.ndarray, count: int) -> np.ndarray:
    """``count x q x m`` draws from the textbook formulas, none of the acquisition's algebra.

    Where the noise is a part of the values, told points come first among ``points`` and are what was told.
    """
    rng, draws = np.random.default_rng(3), []
    for process in surrogate.processes:
        gram = process.covariance(process.x, process.x) + np.diag(process.noise)
        cross = process.covariance(points, process.x)
        mean = process.constant + cross @ np.linalg.solve(gram, process.standardised - process.constant)
        covariance = process.covariance(points, points) - cross @ np.linalg.solve(gram, cross.T)
        if process.nugget:
            told_points = len(process.x)
            covariance += process.nugget * np.eye(len(points))
            covariance[:told_points] = covariance[:, :told_points] = 0.0
            mean[:told_points] = process.standardised
        sampled = process.mean + process.scale * rng.multivariate_normal(mean, covariance, count, method="svd")
        draws.append(sampled + process.expectation(points))
    return np.stack(draws, axis=2)


@pytest.mark.parametrize("m,noise", [(1, 0.01), (2, 0.01), (3, 0.01), (4, 0.01), (1, np.nan), (3, np.nan)])
def test_the_value_is_the_expected_hypervolume_gain_with_pending_points(m: int, noise: float) -> None:
    x, y = told(7, 2, m)
    y = y + 0.1 * np.random.default_rng(1).standard_normal(y.shape)
    surrogate = fit_surrogate(x, y, np.full(y.shape, noise))
    pending = np.array([[0.35, 0.6]])
    points = np.array([[0.5, 0.5], [0.3, 0.65], [0.9, 0.1]])
    values = acquisition(surrogate, pending, 600, m).values(points)
    reference = [-0.1] * m
    for point, value in zip(points, values, strict=True):
        samples = joint_samples(surrogate, np.vstack([x, pending, point]), 1500)
        gains = [hypervolume(sample, reference) - hypervolume(sample[:-1], reference) for sample in samples]
        spread = np.std(gains) / np.sqrt(len(gains))
        assert np.exp(value) == pytest.approx(np.mean(gains), abs=5 * spread + 0.05 * np.mean(gains) + 1e-4)


@pytest.mark.parametrize("kernel", [SMOOTH, MATERN_WITH_TREND])
def test_the_kernel_is_that_of_the_process(kernel: Kernel) -> None:
    x, y = told(7, 2, 2)
    processes = [fit_gaussian_process(x, column, np.full(7, np.nan), kernel) for column in y.T]
    function = acquisition(Surrogate(tuple(processes)), np.zeros((0, 2)), 600, 2)
    point = np.array([0.5, 0.5])
    samples = joint_samples(Surrogate(tuple(processes)), np.vstack([x, point]), 1500)
    gains = [hypervolume(sample, [-0.1] * 2) - hypervolume(sample[:-1], [-0.1] * 2) for sample in samples]
    value, gradient = function.value_and_gradient(point)
    assert np.exp(value) == pytest.approx(np.mean(gains), rel=0.15)
    steps = 1e-6 * np.eye(2)
    numeric = (function.values(point + steps) - function.values(point - steps)) / 2e-6
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4 * abs(gradient).max())


@pytest.mark.parametrize("noise", [np.nan, 0.01])
@pytest.mark.parametrize("kernel", [MATERN, MATERN_WITH_TREND])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_gradient_is_exact(m: int, kernel: Kernel, noise: float) -> None:
    x, y = told(12, 4, m)
    y = y + 0.3 * np.sin(9 * x[:, :1])
    surrogate = fit_surrogate(x, y, np.full(y.shape, noise), kernel=kernel)
    function = acquisition(surrogate, np.array([[0.2] * 4]), 8, m)
    for point in (np.full(4, 0.45), np.array([0.9, 0.1, 0.3, 0.8])):
        value, gradient = function.value_and_gradient(point)
        assert value == pytest.approx(function.values(point[None, :])[0])
        steps = 1e-6 * np.eye(4)
        numeric = (function.values(point + steps) - function.values(point - steps)) / 2e-6
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4 * abs(gradient).max())


@pytest.mark.parametrize("kernel", [MATERN, MATERN_WITH_TREND])
def test_what_items_are_expected_to_score_is_in_the_value_and_the_gradient(kernel: Kernel) -> None:
    x, pending = np.random.default_rng(0).random((9, 2)), np.array([[0.35, 0.6]])
    processes = []
    for objective in range(2):
        centres = np.random.default_rng(objective).random((30, 2))
        margins = 0.2 - ((x[:, None, :] - centres) ** 2).sum(axis=2)
        process = fit_by_items(x, (margins > 0).mean(axis=1), margins, -0.1, kernel)
        assert process is not None
        processes.append(process)
    surrogate = Surrogate(tuple(processes))
    function = acquisition(surrogate, pending, 600, 2)
    for point in (np.array([0.5, 0.5]), np.array([0.3, 0.65])):
        samples = joint_samples(surrogate, np.vstack([x, pending, point]), 1500)
        gains = [hypervolume(sample, [-0.1] * 2) - hypervolume(sample[:-1], [-0.1] * 2) for sample in samples]
        value, gradient = function.value_and_gradient(point)
        spread = np.std(gains) / np.sqrt(len(gains))
        assert np.exp(value) == pytest.approx(np.mean(gains), abs=5 * spread + 0.05 * np.mean(gains) + 1e-4)
        steps = 1e-6 * np.eye(2)
        numeric = (function.values(point + steps) - function.values(point - steps)) / 2e-6
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4 * abs(gradient).max())


def test_far_below_the_front_the_logarithm_still_has_a_slope() -> None:
    """Where the improvement itself underflows to 0, an optimiser must still know which way is up."""
    x, y = told(12, 2, 2)
    y = y - 50.0
    outside = np.array([[1e3, 1e3]])
    function = acquisition(fit_surrogate(x, y, np.full(y.shape, np.nan)), np.zeros((0, 2)), 4, 2, outside)
    value, gradient = function.value_and_gradient(np.array([0.4, 0.4]))
    assert np.isfinite(value) and np.exp(value) == 0.0
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_values_outside_the_space_count_in_the_front() -> None:
    x, y = told(10, 2, 2)
    surrogate = fit_surrogate(x, y, np.full(y.shape, np.nan))
    point = np.array([[0.5, 0.5]])
    alone = acquisition(surrogate, np.zeros((0, 2)), 8, 2).values(point)
    covered = acquisition(surrogate, np.zeros((0, 2)), 8, 2, np.array([[2.0, 2.0]])).values(point)
    assert covered[0] < alone[0]


def test_a_pending_point_takes_the_worth_out_of_its_neighbourhood() -> None:
    x, y = told(8, 2, 2)
    surrogate = fit_surrogate(x, y, np.full(y.shape, np.nan))
    grid = np.random.default_rng(0).random((300, 2))
    values = acquisition(surrogate, np.zeros((0, 2)), 16, 2).values(grid)
    best = grid[np.argmax(values)]
    after = acquisition(surrogate, best[None, :], 16, 2).values(best[None, :])
    assert after[0] < values.max() - 1.0


def test_of_no_points_there_are_no_values() -> None:
    x, y = told(6, 2, 2)
    function = acquisition(fit_surrogate(x, y, np.full(y.shape, np.nan)), np.zeros((0, 2)), 4, 2)
    assert function.values(np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize("m", [1, 3])
def test_thinned_to_some_samples_it_is_the_acquisition_of_these(m: int) -> None:
    """Climbs are on a part of the samples: weights of one sample with another's boxes would send them astray."""
    x, y = told(9, 2, m)
    surrogate = fit_surrogate(x, y + 0.1 * np.random.default_rng(1).standard_normal(y.shape), np.full(y.shape, 0.01))
    half = np.random.default_rng(2).standard_normal((8, len(x), m))
    empty, reference, points = np.zeros((0, 2)), np.full(m, -0.1), np.random.default_rng(3).random((20, 2))
    base_samples = np.concatenate([half, -half])
    every = HypervolumeImprovement(surrogate, empty, reference, np.zeros((0, m)), base_samples)
    some = HypervolumeImprovement(surrogate, empty, reference, np.zeros((0, m)), base_samples[[0, 1, 8, 9]])
    thinned = every.thinned(4)
    assert thinned.samples == 4
    np.testing.assert_allclose(thinned.values(points), some.values(points), rtol=1e-12)
    np.testing.assert_allclose(thinned.value_and_gradient(points[0])[1], some.value_and_gradient(points[0])[1])
