"""Studies as a search would have left them, written as rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import mergefront as mf
from benchmarks.evaluation.answers import answered
from benchmarks.service.storage_cost import grow
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest

NAME = "growth"


class ItemModels:
    """Objective i wants the weight of model i near 0.8 and the others' low.

    With ``items`` each objective is the share of so many right-or-wrong items whose difficulties are the same for all
    candidates.
    """

    def __init__(self, models: int, objectives: int, items: int) -> None:
        self.models = [f"m{index}" for index in range(models)]
        self.objectives = [f"objective-{index}" for index in range(objectives)]
        self.ids = tuple(f"item-{index}" for index in range(items))
        self.difficulties = np.random.default_rng(1).uniform(size=(objectives, items))

    def values(self, recipe: mf.Recipe) -> Any:
        count = len(self.objectives)
        weights = np.array([float(recipe.params.get(f"weight[{model}]", 0.0)) for model in self.models])
        others = (weights**2).sum() - weights[:count] ** 2
        return 0.9 - (weights[:count] - 0.8) ** 2 - 0.1 * others

    def evaluate(self, recipe: mf.Recipe, request: EvaluationRequest) -> Evaluation:
        """All items, or those that a race asks."""
        values = self.values(recipe)
        if not self.ids:
            scores = dict(zip(self.objectives, values.tolist(), strict=True))
            return Evaluation(scores, dict.fromkeys(self.objectives, 0.01))
        ids = dict.fromkeys(self.objectives, self.ids)
        right = (self.difficulties < values[:, None]).astype(float)
        return answered(request, ids, dict(zip(self.objectives, right, strict=True)))


def growing_study(
    url: str,
    trials: int,
    *,
    name: str = NAME,
    models: int = 8,
    objectives: int = 3,
    items: int = 0,
    racing: bool = False,
    evaluations: int | None = None,
    on_trial_end: Callable[[Any], None] = lambda outcome: None,
) -> mf.Study:
    """A study of so many random trials: a weight and a density of each model, written as rows; a raced one is searched.

    With ``evaluations`` it is searched that far.
    """
    scorer = ItemModels(models, objectives, items)

    def searched(evaluations: int) -> mf.Study:
        return mf.search(
            space=mf.MergeSpace(scorer.models, method="ties"),
            evaluate=scorer,
            objectives=scorer.objectives,
            sampler="random",
            evaluations=evaluations,
            racing=racing,
            storage=url,
            name=name,
            progress=False,
            on_trial_end=on_trial_end,
        )

    if evaluations is not None:
        return searched(evaluations)
    anchors = models + 3  # base, experts, two averages
    if racing:
        return searched(anchors + trials)
    study = searched(anchors)
    request = EvaluationRequest(tuple(scorer.objectives))
    grow(study, trials, lambda recipe: scorer.evaluate(recipe, request))
    return mf.load_study(name, storage=url)


def made(**given: Any) -> Callable[[str, int], object]:
    return lambda url, trials: growing_study(url, trials, **given)
