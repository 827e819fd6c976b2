"""The Gaussian processes, held against BoTorch's ``SingleTaskGP`` with the same kernel and priors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from gpytorch.mlls import ExactMarginalLogLikelihood

from mergefront.optimizer.samplers.gaussian_process.fit import fit_gaussian_process, fit_surrogate, log_posterior
from mergefront.optimizer.samplers.gaussian_process.kernel import MATERN, MATERN_WITH_TREND, Covariance, quadratic_trend
from mergefront.optimizer.samplers.mmmo.botorch_engine import matern

UNKNOWN = np.nan


def problem(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random((n, d))
    return x, 3e4 * np.sin(3 * x[:, 0]) - 2e4 * (x[:, 1] - 0.4) ** 2 + 100 * rng.standard_normal(n)


def botorch_model(x: np.ndarray, y: np.ndarray, variance: np.ndarray | None = None) -> SingleTaskGP:
    noise = None if variance is None else torch.tensor(variance)[:, None]
    return SingleTaskGP(torch.tensor(x), torch.tensor(y)[:, None], noise, covar_module=matern(x.shape[1], 1))


@pytest.mark.parametrize("known", [False, True])
def test_log_posterior_equals_botorchs(known: bool) -> None:
    x, y = problem(14, 3)
    standardised = (y - y.mean()) / y.std(ddof=1)
    variance = np.linspace(1.0, 3.0, 14) * 1e5
    model = botorch_model(x, y, variance if known else None)
    lengthscales, noise = np.array([0.4, 0.9, 2.5]), 0.02
    noises = variance / y.var(ddof=1) if known else np.full(14, UNKNOWN)
    value, *_ = log_posterior(np.log(lengthscales), math.log(noise), x, standardised, noises)

    model.covar_module.lengthscale = torch.tensor(lengthscales)
    if not known:
        model.likelihood.noise = torch.tensor([noise])
    # The constant of highest likelihood is part of the definition here; BoTorch learns it with the rest.
    ones = np.ones(14)
    covariance = model.covar_module(torch.tensor(x)).to_dense().detach().numpy()
    covariance = covariance + np.diag(noises if known else noise * ones)
    weights = np.linalg.solve(covariance, ones)
    model.mean_module.initialize(constant=float(weights @ standardised / weights.sum()))
    model.train()
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    expected = 14 * likelihood(model(*model.train_inputs), model.train_targets).item()
    assert value == pytest.approx(expected, rel=1e-6)


def test_gradient_of_the_log_posterior_is_exact() -> None:
    x, y = problem(12, 4)
    standardised = (y - y.mean()) / y.std(ddof=1)
    noises = np.where(np.arange(12) % 3 == 0, 0.05, UNKNOWN)
    theta = np.array([-0.4, 0.2, 0.9, 0.1, -3.0, -1.0])

    def posterior(at: np.ndarray) -> tuple[float, np.ndarray, float, float]:
        return log_posterior(at[:4], at[4], x, standardised, noises, MATERN_WITH_TREND, at[5])

    _, gradient, noise_gradient, trend_gradient = posterior(theta)
    steps = 1e-6 * np.eye(6)
    numeric = [(posterior(theta + step)[0] - posterior(theta - step)[0]) / 2e-6 for step in steps]
    np.testing.assert_allclose([*gradient, noise_gradient, trend_gradient], numeric, rtol=1e-5, atol=1e-6)


def test_a_trend_is_a_quadratic_with_normal_coefficients_and_a_mean_variance_of_1() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 3)), rng.random((4, 3))
    first, second = np.triu_indices(3)

    def terms(x: np.ndarray) -> np.ndarray:
        u = 2.0 * x - 1.0
        return np.concatenate([u, u[:, first] * u[:, second]], axis=1)

    ratios = quadratic_trend(a, b) / (terms(a) @ terms(b).T)
    np.testing.assert_allclose(ratios, ratios[0, 0])
    variances = [Covariance(MATERN_WITH_TREND, np.ones(d), 1.0).variance(rng.random((40_000, d))) for d in (1, 3, 9)]
    np.testing.assert_allclose([variance.mean() - 1.0 for variance in variances], 1.0, rtol=0.02)


def test_slopes_of_a_covariance_are_exact() -> None:
    rng = np.random.default_rng(0)
    covariance = Covariance(MATERN_WITH_TREND, np.array([0.4, 0.8, 2.0]), 0.3)
    point, others, weights, steps = rng.random(3), rng.random((6, 3)), rng.standard_normal(6), 1e-6 * np.eye(3)
    above, below = (covariance(point + sign * steps, others) @ weights for sign in (1, -1))
    _, (slope,) = covariance.with_slope(point[None], others)
    np.testing.assert_allclose(covariance.gradient(point, others, slope, weights), (above - below) / 2e-6, rtol=1e-6)
    above, below = (covariance.variance(point + sign * steps) for sign in (1, -1))
    np.testing.assert_allclose(covariance.variance_gradient(point), (above - below) / 2e-6, rtol=1e-6)
    np.testing.assert_allclose(covariance.variance(others), np.diag(covariance(others, others)))


def test_a_trend_shows_between_points_where_nothing_was_tried() -> None:
    """Merges in the middle of a front would never be tried: a process without a trend returns to the mean there."""
    anchors = np.concatenate([np.zeros((1, 3)), np.eye(3), np.full((1, 3), 1.0 / 3.0)])

    def score(x: np.ndarray) -> np.ndarray:
        return 1.0 - ((x - 0.5) ** 2).sum(axis=1) + 0.5 * x[:, 0] * x[:, 1]

    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tried, middle = np.concatenate([anchors, rng.random((6, 3))]), 0.25 + 0.5 * rng.random((50, 3))
        unknown = np.full(len(tried), UNKNOWN)
        fitted = [fit_gaussian_process(tried, score(tried), unknown, kernel) for kernel in (MATERN_WITH_TREND, MATERN)]
        errors.append([np.abs(process.posterior(middle)[0] - score(middle)).mean() for process in fitted])
    with_trend, without = np.mean(errors, axis=0)
    assert with_trend < 0.3 * without


def test_posterior_equals_botorchs_with_the_same_hyper_parameters() -> None:
    x, y = problem(20, 3)
    process = fit_gaussian_process(x, y, np.full(20, UNKNOWN))
    model = botorch_model(x, y)
    model.covar_module.lengthscale = torch.tensor(process.covariance.lengthscales)
    model.likelihood.noise = torch.tensor(process.noise[:1])
    model.mean_module.initialize(constant=process.constant)
    model.eval()
    points = np.random.default_rng(1).random((7, 3))
    expected = model.posterior(torch.tensor(points))
    mean, variance = process.posterior(points)
    np.testing.assert_allclose(mean, expected.mean.detach().numpy()[:, 0], rtol=1e-6)
    np.testing.assert_allclose(variance, expected.variance.detach().numpy()[:, 0], rtol=1e-5)


def test_a_fit_finds_which_parameters_matter_and_predicts() -> None:
    x, y = problem(40, 5)
    process = fit_gaussian_process(x, y, np.full(40, UNKNOWN))
    assert process.covariance.lengthscales[:2].max() < process.covariance.lengthscales[2:].min()
    new_x, new_y = problem(200, 5, seed=1)
    assert np.corrcoef(process.posterior(new_x)[0], new_y)[0, 1] > 0.99


def test_known_standard_errors_weigh_the_observations() -> None:
    """Of two contradicting observations at one place, the precise one is believed."""
    x = np.array([[0.0], [0.5], [0.5], [1.0]])
    y = np.array([0.0, 1.0, 0.0, 0.0])
    process = fit_gaussian_process(x, y, np.array([1e-4, 1e-4, 0.25, 1e-4]))
    assert process.posterior(np.array([[0.5]]))[0][0] > 0.7


def test_no_error_at_all_from_a_small_sample_is_not_certainty() -> None:
    x, y = problem(6, 2)[0], np.array([0.2, 0.3, 0.0, 0.4, 0.5, 0.1])
    process = fit_gaussian_process(x, y, np.array([0.01, 0.01, 0.0, 0.01, 0.01, UNKNOWN]))
    scale = y.var(ddof=1)
    assert process.noise[2] * scale == pytest.approx(0.01 / 16)
    assert process.noise[0] * scale == pytest.approx(0.01)


@pytest.mark.parametrize("values", [[0.3] * 6, [1e12] * 6, [1e-12, 3e-12, 2e-12, 5e-12, 1e-12, 4e-12], [0.0] * 6])
def test_constant_and_tiny_values_give_finite_predictions(values: list[float]) -> None:
    x = np.random.default_rng(0).random((6, 2))
    process = fit_gaussian_process(x, np.array(values), np.full(6, UNKNOWN))
    mean, variance = process.posterior(np.random.default_rng(1).random((5, 2)))
    assert np.isfinite(mean).all() and (variance > 0).all()
    assert abs(mean - np.mean(values)).max() <= 10 * max(np.ptp(values), 1e-9 * abs(values[0]))


def test_pending_points_reduce_the_variance_around_them_and_nothing_else() -> None:
    x, y = problem(10, 2)
    surrogate = fit_surrogate(x, np.stack([y, -y], axis=1), np.full((10, 2), UNKNOWN))
    pending, points = np.array([[0.9, 0.9]]), np.array([[0.88, 0.9], [0.1, 0.2]])
    before, after = surrogate.posterior(points), surrogate.with_pending(pending).posterior(points)
    np.testing.assert_allclose(after[0], before[0], atol=1e-6 * np.ptp(y))
    assert (after[1] <= before[1] * (1 + 1e-9)).all()
    assert (after[1][0] < 0.7 * before[1][0]).all()


def test_values_are_exact_until_something_says_otherwise() -> None:
    """A sampler that took luck for merit would chase it; one that took merit for luck would miss it."""
    rng = np.random.default_rng(0)
    x = rng.random((15, 2))
    y = np.sin(3 * x[:, 0]) + 0.1 * rng.standard_normal(15)
    unknown = np.full(15, np.nan)
    assert fit_gaussian_process(x, y, unknown).nugget > 0.0
    assert fit_gaussian_process(x, y, np.full(15, 0.01)).nugget == 0.0
    twice = np.concatenate([x, x[:1]])
    assert fit_gaussian_process(twice, np.append(y, y[0]), np.full(16, np.nan)).nugget > 0.0
    assert fit_gaussian_process(twice, np.append(y, y[0] + 0.2), np.full(16, np.nan)).nugget == 0.0
