"""Mixing the answers of several models by weight. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from mergefront.optimizer.errors import EvaluationError

_SPACES = re.compile(r"\s+")
_TRAILING = " \t\n.,;:!"


def normalised_answer(text: str) -> str:
    """An answer as it is compared in a vote: no case, single spaces, no closing punctuation."""
    return _SPACES.sub(" ", text).strip().strip(_TRAILING).casefold()


def weighted_vote(answers: Mapping[str, str], weights: Mapping[str, float]) -> str:
    """The answer with the largest sum of weights, as its strongest supporter wrote it.

    ``answers`` and ``weights`` are by model. Weights below 0 vote against an answer; models of weight 0 do
    not vote, and without any vote the answer is empty. Ties go to the answer whose strongest supporter is
    stronger, then to the model that is named first.
    """
    support: dict[str, list[tuple[float, str]]] = {}
    for name, text in answers.items():
        if weights[name] != 0.0:
            support.setdefault(normalised_answer(text), []).append((weights[name], text))
    if not support:
        return ""

    def strength(votes: Sequence[tuple[float, str]]) -> tuple[float, float]:
        return math.fsum(weight for weight, _ in votes), max(weight for weight, _ in votes)

    best = max(support.values(), key=strength)
    return max(best, key=lambda vote: vote[0])[1]


def pooled_choices(logprobs: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> list[float]:
    """Log-probabilities of choices under a weighted mixture of models.

    ``logprobs[model]`` has one number per choice. Each model's are normalised over the choices, so that a
    model that finds all of them unlikely has its full say; then the probabilities are averaged with the
    weights. All weights 0: every choice is equally likely. Raises ``EvaluationError`` for negative weights.
    """
    shares = mixture_shares(weights)
    number = len(next(iter(logprobs.values())))
    if shares is None:
        return [-math.log(number)] * number
    normalised = {name: _log_normalised(values) for name, values in logprobs.items()}
    return [_log_mean({name: values[place] for name, values in normalised.items()}, shares) for place in range(number)]


def pooled_text(logprobs: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The log-probability of one text under a weighted mixture of models (a linear opinion pool)."""
    shares = mixture_shares(weights)
    if shares is None:
        raise EvaluationError("all weights are 0, so that no model scores this text", kind="weights")
    return _log_mean(logprobs, shares)


def mixture_shares(weights: Mapping[str, float]) -> dict[str, float] | None:
    """Weights as shares of 1, or None when all are 0."""
    negative = [name for name, weight in weights.items() if weight < 0]
    if negative:
        raise EvaluationError(
            f"weight[{negative[0]}] is {weights[negative[0]]:g}; a mixture needs weights of at least 0",
            kind="weights",
        )
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total > 0 else None


def _log_normalised(values: Sequence[float]) -> list[float]:
    largest = max(values)
    total = largest + math.log(math.fsum(math.exp(value - largest) for value in values))
    return [value - total for value in values]


def _log_mean(values: Mapping[str, float], shares: Mapping[str, float]) -> float:
    used = {name: value for name, value in values.items() if shares[name] > 0}
    largest = max(used.values())
    return min(0.0, largest + math.log(math.fsum(shares[name] * math.exp(used[name] - largest) for name in used)))
