"""Item response theory: what a merge would score on all items, from a few of them and its parents' answers.

The two-parameter logistic model gives the chance that model m gets item i right as

    p_im = sigmoid(a_i . theta_m - b_i)

with the item's discrimination ``a_i`` and difficulty ``b_i`` and the model's ability ``theta_m``. MERGE3 (Mencattini
et al. 2025) fits items and abilities to the parents' answers and takes a merge's ability for a combination of
theirs, theta = sum_k lambda_k theta_k, whose weights the few answered items decide. Two estimates of the mean
over all items follow: ``mp`` keeps the answers that are known and predicts the others; ``gmp`` averages it with
the plain mean of the answers.

Shapes: n items, p parents, d dimensions of ability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

PRIOR_DISCRIMINATION = 1.0
"""Standard deviation of the normal prior of a discrimination."""
PRIOR_DIFFICULTY = 2.0
PRIOR_COMBINATION = 1.0
"""Standard deviation of a combination's weights about equal ones."""
FEWEST_PARENTS = 2
FEWEST_ANSWERS = 4


@dataclass(frozen=True)
class ItemModel:
    """A fitted model: ``discrimination`` (n x d), ``difficulty`` (n), ``abilities`` of the parents (p x d)."""

    discrimination: Array
    difficulty: Array
    abilities: Array

    def chances(self, ability: Array) -> Array:
        """The chance of each item (n) to be answered rightly by a model of this ability (d)."""
        return _sigmoid(self.discrimination @ ability - self.difficulty)


@dataclass(frozen=True)
class ResponseEstimate:
    """Estimates of the mean over all items: ``mean`` of the answers alone, ``mp`` and ``gmp`` (MERGE3)."""

    mean: float
    mp: float
    gmp: float


def fit_items(answers: Array, dimensions: int = 1) -> ItemModel:
    """Fit the two-parameter model to the parents' answers (p x n, each in [0, 1]) by maximum a posteriori.

    Raises ``ValueError`` for answers outside [0, 1] and for fewer than ``FEWEST_PARENTS`` parents.
    """
    parents, items = answers.shape
    if parents < FEWEST_PARENTS:
        raise ValueError(f"{parents} parents; at least {FEWEST_PARENTS} are needed to tell items apart")
    if not ((answers >= 0) & (answers <= 1)).all():
        raise ValueError("item response theory needs answers in [0, 1], such as right and wrong")
    smoothed = np.clip(answers.mean(axis=1), 0.02, 0.98)
    abilities = np.zeros((parents, dimensions))
    logits = np.log(smoothed / (1 - smoothed))
    abilities[:, 0] = (logits - logits.mean()) / max(float(logits.std()), 1e-6)
    for extra in range(1, dimensions):
        abilities[extra % parents, extra] = 1.0
    start = np.concatenate([np.full(items * dimensions, 0.5), np.zeros(items), abilities.ravel()])

    def loss(flat: Array) -> tuple[float, Array]:
        a = flat[: items * dimensions].reshape(items, dimensions)
        b = flat[items * dimensions : items * (dimensions + 1)]
        theta = flat[items * (dimensions + 1) :].reshape(parents, dimensions)
        z = theta @ a.T - b
        wrong = _sigmoid(z) - answers
        value = float(np.sum(np.logaddexp(0.0, z) - answers * z))
        value += 0.5 * float(np.sum((a / PRIOR_DISCRIMINATION) ** 2) + np.sum((b / PRIOR_DIFFICULTY) ** 2))
        value += 0.5 * float(np.sum(theta**2))
        slope_a = wrong.T @ theta + a / PRIOR_DISCRIMINATION**2
        slope_b = -wrong.sum(axis=0) + b / PRIOR_DIFFICULTY**2
        slope_theta = wrong @ a + theta
        return value, np.concatenate([slope_a.ravel(), slope_b, slope_theta.ravel()])

    flat = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return ItemModel(
        flat[: items * dimensions].reshape(items, dimensions),
        flat[items * dimensions : items * (dimensions + 1)],
        flat[items * (dimensions + 1) :].reshape(parents, dimensions),
    )


def combined_ability(model: ItemModel, scores: Array, asked: Integers) -> Array:
    """The ability (d) of a merge as the combination of its parents' that makes its answers most likely."""
    parents = len(model.abilities)
    a, b = model.discrimination[asked], model.difficulty[asked]
    equal = np.full(parents, 1.0 / parents)

    def loss(weights: Array) -> tuple[float, Array]:
        z = a @ (weights @ model.abilities) - b
        value = float(np.sum(np.logaddexp(0.0, z) - scores * z))
        value += 0.5 * float(np.sum(((weights - equal) / PRIOR_COMBINATION) ** 2))
        slope = model.abilities @ (a.T @ (_sigmoid(z) - scores)) + (weights - equal) / PRIOR_COMBINATION**2
        return value, slope

    weights = minimize(loss, equal, jac=True, method="L-BFGS-B").x
    return np.asarray(weights @ model.abilities)


def response_estimate(
    parents: Array, scores: Array, asked: Integers, model: ItemModel | None = None
) -> ResponseEstimate:
    """What a merge scores on all n items, from its ``scores`` (k) on the ``asked`` ones.

    ``parents`` are its parents' answers (p x n); ``model`` saves the fit where several merges have the same parents.
    Exact, that is the plain mean of the answers, where all items were asked, and where too few parents or answers
    leave nothing to fit. The weight of the plain mean in ``gmp`` is that of its precision: its variance against
    the squared gap of model and answers on the asked items.
    """
    items = parents.shape[1]
    mean = float(scores.mean())
    if len(asked) == items or len(parents) < FEWEST_PARENTS or len(asked) < FEWEST_ANSWERS:
        return ResponseEstimate(mean, mean, mean)
    fitted = fit_items(parents) if model is None else model
    chances = fitted.chances(combined_ability(fitted, scores, asked))
    rest = np.setdiff1d(np.arange(items), asked)
    share = len(asked) / items
    mp = share * mean + (1.0 - share) * float(chances[rest].mean())
    variance = max(float(scores.var()), 1.0 / (4.0 * len(asked))) / len(asked)
    bias = max((float(chances[asked].mean()) - mean) ** 2 - variance, 0.0)
    model_error = bias + variance / math.sqrt(len(asked))
    weight = model_error / (model_error + variance)
    return ResponseEstimate(mean, mp, weight * mean + (1.0 - weight) * mp)


def _sigmoid(z: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0))))
