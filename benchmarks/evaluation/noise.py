"""How often a study claims a winner when there is none:  python -m benchmarks.evaluation.noise

Every recipe is equally good: whatever the weights, an item is answered rightly with the item's own
probability, by a coin of the recipe's own. A search of 30 candidates then picks the luckiest ones, and the verdict
has to see through that. Any claim is false: that the best merge beats the best anchor, or that some
merge beats some anchor.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mergefront as mf
from benchmarks.evaluation.answers import answered
from benchmarks.evaluation.problems import Array
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest
from mergefront.optimizer.seeding import derive_seed
from mergefront.results.verdict import verdict

OBJECTIVES = ("maths", "french")
ITEMS = 300
CANDIDATES = 30


@dataclass(frozen=True)
class Claims:
    """What a study of pure noise claims, on the items that it optimised on and on the report items."""

    search_best: bool
    search_any: bool
    report_best: bool
    report_any: bool


class PureNoise:
    """Equally good recipes: item scores by coins whose bias is the item's."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        ids = {name: [f"{request.split} {name} {number}" for number in range(ITEMS)] for name in request.objectives}
        return answered(request, ids, {name: self._scores(recipe, name, request.split) for name in ids})

    def _scores(self, recipe: Recipe, name: str, split: str) -> Array:
        chances = np.random.default_rng(derive_seed(self.seed, name, split)).beta(1.0, 1.0, ITEMS)
        coins = np.random.default_rng(derive_seed(self.seed, name, split, recipe.digest)).random(ITEMS)
        return np.asarray((coins < chances).astype(float))


def claims(seed: int, sampler: str, racing: bool) -> Claims:
    """What one study claims."""
    evaluator = PureNoise(seed)
    space = MergeSpace(OBJECTIVES, method="task_arithmetic", parameters={"weight": [0, 1]})
    with tempfile.TemporaryDirectory() as folder:
        study = mf.search(
            space=space,
            evaluate=evaluator,
            objectives=OBJECTIVES,
            sampler=sampler,
            evaluations=CANDIDATES,
            seed=seed,
            racing=racing,
            storage=f"sqlite:///{Path(folder) / 'study.db'}",
            name="noise",
        )
        for candidate in {one.recipe.digest: one for one in (*study.anchors(), *study.front())}.values():
            evaluation = evaluator.evaluate(candidate.recipe, EvaluationRequest(OBJECTIVES, "report"))
            study.ledger.record(candidate.recipe, evaluation, "report")
        said = claims_of(study)
        study.database.close()
    return said


def claims_of(study: mf.Study) -> Claims:
    """What a study claims whose front and anchors were scored on the report items."""
    said = []
    for split in ("search", "report"):
        found = verdict(study, split)
        if found is None:
            said += [False, False]
        else:
            said += [found.match(found.picked, found.best_anchor).beats, any(one.beats for one in found.matches)]
    return Claims(*said)


def print_claims(parser: argparse.ArgumentParser, claims: Callable[..., Claims]) -> None:
    """How many studies claim a winner, by kind of claim; ``claims`` takes the seed and the parser's other options."""
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--racing", action="store_true", help="a fifth of the search items")
    options = vars(parser.parse_args())
    first, several = options.pop("first"), []
    for seed in range(first, first + options.pop("seeds")):
        several.append(claims(seed, **options))
        print(seed, several[-1], flush=True)
    for name in ("search_best", "search_any", "report_best", "report_any"):
        print(f"{name:12}  {sum(getattr(one, name) for one in several)} of {len(several)} studies claim a winner")


if __name__ == "__main__":
    print_claims(argparse.ArgumentParser(prog="python -m benchmarks.evaluation.noise", description=__doc__), claims)
