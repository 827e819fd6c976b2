"""Evaluations of candidates whose answers to all items are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores


def answered(
    request: EvaluationRequest,
    ids: Mapping[str, Sequence[str]],
    scores: Mapping[str, Array],
    margins: Mapping[str, Array] | None = None,
) -> Evaluation:
    """The evaluation of a candidate whose score of every item is known: all items, or those that the race asks."""

    def asked(name: str, indices: Sequence[int]) -> ItemScores:
        chosen = list(indices)
        smooth = tuple(margins[name][chosen].tolist()) if margins is not None and name in margins else None
        return ItemScores(tuple(ids[name][index] for index in chosen), tuple(scores[name][chosen].tolist()), smooth)

    details: Mapping[str, Any] = {}
    if request.race is None:
        items = {name: asked(name, range(len(ids[name]))) for name in request.objectives}
        means = {name: one.mean for name, one in items.items()}
        errors = {name: one.standard_error for name, one in items.items()}
    else:
        race = request.race.start({name: ids[name] for name in request.objectives}, {})
        while (batch := race.batch()) is not None:
            for name, indices in batch.items():
                if indices:
                    race.tell(name, indices, asked(name, indices))
        result = race.result()
        items, details = dict(result.items), result.details
        means = {name: one.mean for name, one in result.estimates.items()}
        errors = {name: one.standard_error for name, one in result.estimates.items()}
    cost = {"items": float(sum(len(one.ids) for one in items.values()))}
    return Evaluation(means, errors, items, cost=cost, details=details)
