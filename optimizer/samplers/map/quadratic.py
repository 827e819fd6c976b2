"""MAP's surrogate: each metric is a sigmoid of a quadratic in the coefficients (arXiv 2406.07529, section 3).

Notation: x is ``n x d`` in [0, 1]; features are 1, x_i, x_i x_j, so p = (d+1)(d+2)/2; a metric y is squashed into
(0, 1) and its logit regressed on the features. The fit is a Bayesian linear regression: the ridge is chosen by
leave-one-out error, so fewer than p observations do, and the posterior says how sure a prediction is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergefront.optimizer.arrays import Array

MARGIN = 0.25
"""The sigmoid's ends lie this share of the observed range beyond the worst and the best observation. Chosen by hand."""
RIDGES = 10.0 ** np.arange(-8.0, 3.0)
"""From next to none to a nearly constant model, in units of the squared singular values. Chosen by hand."""


def coefficient_count(dimension: int) -> int:
    """Number of coefficients of a quadratic in ``dimension`` variables."""
    return (dimension + 1) * (dimension + 2) // 2


def features(x: Array) -> Array:
    """1, x_i and x_i x_j (i <= j) of centred and scaled points (``n x d``): ``n x p``."""
    centred = 2.0 * x - 1.0
    i, j = np.triu_indices(x.shape[1])
    return np.concatenate([np.ones((len(x), 1)), centred, centred[:, i] * centred[:, j]], axis=1)


@dataclass(frozen=True)
class QuadraticModel:
    """One fitted metric: y = low + (high - low) sigmoid(features(x) weights)."""

    low: float
    high: float
    weights: Array
    covariance: Array
    """Posterior covariance of the weights (``p x p``)."""

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Expected metric and its standard deviation (first order) at ``x`` (``q x d``), each ``q``."""
        rows = features(x)
        share = _sigmoid(rows @ self.weights)
        deviation = np.sqrt(np.maximum(np.einsum("qp,pr,qr->q", rows, self.covariance, rows), 0.0))
        width = self.high - self.low
        return self.low + width * share, width * share * (1.0 - share) * deviation


def fit_quadratic(x: Array, y: Array, link: bool = True) -> QuadraticModel:
    """The model of ``n`` observations of one metric (``n``); ``link`` False widens the sigmoid until it is straight."""
    spread = float(np.ptp(y)) or max(abs(float(y[0])), 1.0)
    margin = (MARGIN if link else 100.0) * spread
    low, high = float(y.min()) - margin, float(y.max()) + margin
    share = (y - low) / (high - low)
    logit = np.log(share / (1.0 - share))
    # A squashed observation near an end pins the logit down less than one in the middle: weights p (1 - p).
    root = share * (1.0 - share)
    rows, target = features(x) * root[:, None], logit * root
    left, singular, right = np.linalg.svd(rows, full_matrices=False)
    projected = left.T @ target
    best, chosen = np.inf, RIDGES[-1]
    for ridge in RIDGES:
        shrink = singular**2 / (singular**2 + ridge)
        residual = target - left @ (shrink * projected)
        leverage = np.minimum((left**2 * shrink).sum(axis=1), 1.0 - 1e-9)
        error = float(((residual / (1.0 - leverage)) ** 2).sum())
        if error < best:
            best, chosen = error, float(ridge)
    weights = right.T @ (singular / (singular**2 + chosen) * projected)
    variance = max(best / len(y), 1e-12)
    # In directions that no observation has (beyond the rank) the prior's variance, variance / ridge, remains.
    inside = right.T * (1.0 / (singular**2 + chosen) - 1.0 / chosen)
    covariance = variance * (inside @ right + np.eye(rows.shape[1]) / chosen)
    return QuadraticModel(low, high, weights, covariance)


def _sigmoid(z: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -500.0, 500.0))))
