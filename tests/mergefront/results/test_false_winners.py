"""On pure noise no winner is claimed, however lucky the best of many candidates was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mergefront as mf
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores
from mergefront.optimizer.seeding import derive_seed
from mergefront.results.verdict import verdict

OBJECTIVES = ("maths", "french")
ITEMS = 120


class EqualRecipes:
    """Every recipe is as good as every other: coins with the item's bias; ``same`` experts answer alike."""

    def __init__(self, seed: int, same: bool) -> None:
        self.seed, self.same = seed, same

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        items = {}
        for name in request.objectives:
            chances = np.random.default_rng(derive_seed(self.seed, name, request.split)).random(ITEMS)
            owner = "all" if self.same else recipe.digest
            coins = np.random.default_rng(derive_seed(self.seed, name, request.split, owner)).random(ITEMS)
            ids = tuple(f"{request.split} {name} {number}" for number in range(ITEMS))
            items[name] = ItemScores(ids, tuple((coins < chances).astype(float).tolist()))
        return Evaluation(
            {name: one.mean for name, one in items.items()},
            {name: one.standard_error for name, one in items.items()},
            items,
        )


def claims_a_winner(folder: Path, seed: int, same: bool) -> tuple[bool, ...]:
    """Whether a study claims, on search and on report items, that any merge beats any anchor."""
    evaluator = EqualRecipes(seed, same)
    study = mf.search(
        space=MergeSpace(OBJECTIVES, method="task_arithmetic", parameters={"weight": [0, 1]}),
        evaluate=evaluator,
        objectives=OBJECTIVES,
        sampler="random",
        evaluations=16,
        seed=seed,
        storage=f"sqlite:///{folder}/study{seed}.db",
        name="noise",
    )
    for candidate in {one.recipe.digest: one for one in (*study.anchors(), *study.front())}.values():
        found = evaluator.evaluate(candidate.recipe, EvaluationRequest(OBJECTIVES, "report"))
        study.ledger.record(candidate.recipe, found, "report")
    verdicts = [verdict(study, split) for split in ("search", "report")]
    study.database.close()
    return tuple(one is not None and any(match.beats for match in one.matches) for one in verdicts)


@pytest.mark.long
def test_pure_noise_has_no_winner(tmp_path: Path) -> None:
    claimed = [claims_a_winner(tmp_path, seed, same=False) for seed in range(12)]
    for split, claims in zip(("search", "report"), zip(*claimed, strict=True), strict=True):
        assert sum(claims) <= 1, split


def test_identical_experts_have_no_winner(tmp_path: Path) -> None:
    assert not any(claims_a_winner(tmp_path, 0, same=True))
