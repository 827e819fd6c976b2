"""Which expert a prompt is for: logistic regression on the mean of the prompt's token embeddings.

    scores = weights @ mean of the embedding's rows of the prompt's tokens + bias, the highest one is the expert's

As JSON: {"experts": [...], "weights": experts x width, "bias": [...], "accuracy": share of right choices on items that
it was not fitted on, "tasks": {task: its expert}, "embedding": name of the tensor}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from mergefront.adapters.checkpoints.header import read_json
from mergefront.optimizer.arrays import Array
from mergefront.optimizer.errors import UserError

_PENALTY = 1e-2
"""On the squared weights of standardised features, beside the mean of the items' losses."""
_FOLDS = 5


@dataclass(frozen=True)
class Router:
    """See the module; ``weights`` (experts x width) and ``bias`` as lists, so that JSON has them."""

    experts: list[str]
    weights: list[list[float]]
    bias: list[float]
    accuracy: float
    tasks: dict[str, str]
    embedding: str

    def choose(self, prompts: Array) -> list[str]:
        """The expert of each prompt, by the means of their embeddings (``n x width``)."""
        scores = prompts @ np.array(self.weights).T + np.array(self.bias)
        return [self.experts[index] for index in scores.argmax(axis=1)]

    def write(self, file: Path) -> None:
        """Write the JSON of the module's docstring."""
        file.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Router:
        """Raises ``UserError`` for a file that is no router."""
        try:
            return cls(**read_json(file))
        except TypeError as error:
            raise UserError(f"{file}: this is no router of an export with --twin ({error})") from None


def fit(prompts: Array, labels: Sequence[str], tasks: Mapping[str, str], embedding: str) -> Router:
    """Fit a router to the means of prompts' embeddings (``n x width``) and the experts that they are for.

    Its accuracy is by cross-validation: each item is judged by a router that was fitted without it.
    """
    experts = list(dict.fromkeys(labels))
    classes = np.array([experts.index(label) for label in labels])
    fold = np.arange(len(classes)) % _FOLDS
    right = 0
    for held_out in range(_FOLDS):
        inside = fold != held_out
        if inside.any():
            weights, bias = _fitted(prompts[inside], classes[inside], len(experts))
            chosen = (prompts[~inside] @ weights.T + bias).argmax(axis=1)
            right += int((chosen == classes[~inside]).sum())
    weights, bias = _fitted(prompts, classes, len(experts))
    accuracy = right / len(classes)
    return Router(experts, weights.tolist(), bias.tolist(), accuracy, dict(tasks), embedding)


def _fitted(prompts: Array, classes: Array, count: int) -> tuple[Array, Array]:
    """Weights (``count x width``) and bias (``count``) of least loss, every class counting the same in all."""
    mean, spread = prompts.mean(axis=0), prompts.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    features = (prompts - mean) / scale
    wanted = np.eye(count)[classes]
    share = (wanted / np.maximum(wanted.sum(axis=0), 1.0)).sum(axis=1)
    share /= share.sum()
    width = features.shape[1]

    def loss(flat: Array) -> tuple[float, Array]:
        weights, bias = flat[: count * width].reshape(count, width), flat[count * width :]
        likelihoods = log_softmax(features @ weights.T + bias, axis=1)
        error = (np.exp(likelihoods) - wanted) * share[:, None]
        value = -float((share * (likelihoods * wanted).sum(axis=1)).sum()) + _PENALTY * float((weights**2).sum())
        slope = error.T @ features + 2 * _PENALTY * weights
        return value, np.concatenate([slope.ravel(), error.sum(axis=0)])

    found = minimize(loss, np.zeros(count * (width + 1)), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    weights = found[: count * width].reshape(count, width) / scale
    return weights, found[count * width :] - weights @ mean
