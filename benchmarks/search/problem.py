"""A landscape that a sampler is tried on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mergefront.optimizer.recipes.anchors import GivenRecipe
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import REFERENCE, Normaliser, Objective
from mergefront.optimizer.scores.pareto import hypervolume


@dataclass(frozen=True)
class Scored:
    """What a sampler is told of one recipe, and what is true of it (the two differ when items are drawn)."""

    told: Evaluation
    true: tuple[float, ...]


@dataclass
class Problem:
    """One landscape: ``evaluate(recipe, seed of the run, number of the trial)``.

    ``least`` bounds scores that are no objective: at least so much of each name; what violates it adds no hypervolume.
    """

    name: str
    space: MergeSpace
    objectives: tuple[Objective, ...]
    anchors: tuple[GivenRecipe, ...]
    evaluate: Callable[[Recipe, int, int], Scored]
    ranges: tuple[tuple[float, float], ...] | None = None
    least: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ranges is None:
            known = [self.evaluate(anchor.recipe, 0, i).true for i, anchor in enumerate(self.anchors)]
            self.normaliser = Normaliser.from_anchors(self.objectives, known)
        else:
            fixed = [Objective(o.name, o.direction, r) for o, r in zip(self.objectives, self.ranges, strict=True)]
            self.normaliser = Normaliser.from_anchors(fixed, [])

    def hypervolume(self, values: Sequence[Sequence[float]]) -> float:
        """Of true values (``n x m``), normalised by the anchors."""
        normalised = [self.normaliser.normalise(row) for row in values]
        return hypervolume(normalised, [REFERENCE] * len(self.objectives))


def constrained(problem: Problem, name: str, least: float) -> Problem:
    """The problem with its last objective as a constraint instead: at least ``least`` of its normalised value."""
    *kept, bound = problem.objectives
    worst, scale = problem.normaliser.lows[-1], problem.normaliser.scales[-1]

    def evaluate(recipe: Recipe, seed: int, number: int) -> Scored:
        scored = problem.evaluate(recipe, seed, number)
        return Scored(scored.told, scored.true[:-1])

    return replace(
        problem, name=name, objectives=tuple(kept), evaluate=evaluate, least={bound.name: worst + least * scale}
    )
