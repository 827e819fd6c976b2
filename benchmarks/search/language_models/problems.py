"""Problems of merges of real language models: live ones, whose every evaluation is kept, and grids that were measured.

Exact match of each skill, by reading; with ``measure`` "loss" instead the mean negative log-likelihood of the answers'
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.search.language_models.live import Experts
from benchmarks.search.language_models.measured import Measured
from benchmarks.search.language_models.skills import FOLDER, Split, asked_items
from benchmarks.search.language_models.train_experts import PLANS
from benchmarks.search.problem import Problem, Scored
from benchmarks.search.recorded_landscape import RecordedLandscape
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective

Array = NDArray[np.float64]
Measure = Literal["exact match", "loss"]
LAYERS = 30
NODES: Mapping[Split, tuple[float, ...]] = {
    "search": tuple(0.25 * step for step in range(5)),
    "report": (0.0, 1 / 3, 2 / 3, 1.0),
}
"""Of a grid's weights; ten times the items take ten times as long at each."""


@dataclass(frozen=True)
class SkillMerges:
    """Merges of the experts of a set, ``experts`` by its name, in ``space``; ``groups`` objectives, each the mean of as
    many skills, one a skill without. A ``grid`` is read between its nodes, in the others each merge is made. Of each
    skill 40 items are asked, or the 400 of the ``split`` "report"."""

    experts: str
    space: Mapping[str, Any]
    measure: Measure = "exact match"
    groups: int | None = None
    grid: bool = False
    split: Split = "search"

    @property
    def skills(self) -> tuple[str, ...]:
        return PLANS[self.experts].skills

    @property
    def landscape(self) -> Path:
        return FOLDER / "landscapes" / f"{self._measured}.npz"

    @property
    def nodes(self) -> tuple[float, ...]:
        """Of every weight of a grid."""
        return NODES[self.split]

    @property
    def items(self) -> dict[str, tuple[str, ...]]:
        """Ids of each skill's items."""
        return {
            skill: tuple(f"{skill}:{place}" for place in range(len(asked_items(skill, self.split))))
            for skill in self.skills
        }

    @property
    def _measured(self) -> str:
        return self.experts if self.split == "search" else f"{self.experts}-{self.split}"

    def merge_space(self) -> MergeSpace:
        return MergeSpace(list(self.skills), base_model="base", **self.space)

    def live(self, folder: Path) -> Experts:
        """Measured in ``folder``, as far as it was not measured before."""
        return Experts(self.experts, Measured(self._measured, folder), self.split)

    def made(self, name: str, folder: Path) -> Problem:
        """``folder`` is that of trained networks; what is measured goes to ``live`` beside it."""
        space = self.merge_space()
        ids = self.items
        read = self._on_grid() if self.grid else self._live(folder.parent / "live", [len(own) for own in ids.values()])
        count = self.groups or len(self.skills)
        grouped = [
            self.skills[i * len(self.skills) // count : (i + 1) * len(self.skills) // count] for i in range(count)
        ]
        names = ["+".join(group) for group in grouped]

        def evaluate(recipe: Recipe, seed: int, number: int) -> Scored:
            margins, losses = read(recipe)
            items = {}
            for objective, group in zip(names, grouped, strict=True):
                own = np.concatenate([margins[skill] for skill in group])
                values = (
                    (own > 0).astype(float) if losses is None else np.concatenate([losses[skill] for skill in group])
                )
                asked = tuple(one for skill in group for one in ids[skill])
                items[objective] = ItemScores(asked, tuple(values.tolist()), tuple(own.tolist()))
            scores = {objective: scored.mean for objective, scored in items.items()}
            return Scored(Evaluation(scores, {}, items), tuple(scores.values()))

        direction: Literal["minimize", "maximize"] = "minimize" if self.measure == "loss" else "maximize"
        return Problem(name, space, tuple(Objective(one, direction) for one in names), tuple(anchors(space)), evaluate)

    def _on_grid(self) -> Callable[[Recipe], tuple[dict[str, Array], dict[str, Array] | None]]:
        landscape = RecordedLandscape.read(self.landscape)

        def read(recipe: Recipe) -> tuple[dict[str, Array], dict[str, Array] | None]:
            point = {skill: float(recipe.params[f"weight[{skill}]"]) for skill in self.skills}
            return landscape.at(point), landscape.losses_at(point) if self.measure == "loss" else None

        return read

    def _live(
        self, folder: Path, lengths: list[int]
    ) -> Callable[[Recipe], tuple[dict[str, Array], dict[str, Array] | None]]:
        experts = self.live(folder)
        ends = np.cumsum(lengths)[:-1]

        def apart(values: NDArray[np.float16]) -> dict[str, Array]:
            return dict(zip(self.skills, np.split(values.astype(float), ends), strict=True))

        def read(recipe: Recipe) -> tuple[dict[str, Array], dict[str, Array] | None]:
            reading = experts.reading(recipe)
            return apart(reading.margins), apart(reading.losses) if self.measure == "loss" else None

        return read


ADDED: Mapping[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": [0, 1]}}
TIES: Mapping[str, Any] = {"method": "ties", "parameters": {"weight": [0, 1], "density": [0.1, 1]}}
BLOCKS: Mapping[str, Any] = {**ADDED, "granularity": {"starts": [0, 22, 25, 28]}, "layers": LAYERS}
"""Four blocks of the ten layers that experts change: 20 and 21, 22 to 24, 25 to 27, 28 and 29."""

LANGUAGE_MODELS = ("SmolLM2", "Gemma")
"""What the names of problems of language models begin with."""

SKILL_MERGES: Mapping[str, SkillMerges] = {
    "SmolLM2 written, weights 3-d": SkillMerges("written", ADDED, grid=True),
    "SmolLM2 written, weights 3-d, loss": SkillMerges("written", ADDED, "loss", grid=True),
    "SmolLM2 written, weights 3-d, 400 items": SkillMerges("written", ADDED, grid=True, split="report"),
    "SmolLM2 ordered, weights 3-d, 400 items": SkillMerges("ordered", ADDED, grid=True, split="report"),
    "Gemma 3 270M, weights 3-d": SkillMerges("gemma", ADDED, grid=True),
    "Gemma 3 270M, weights 3-d, loss": SkillMerges("gemma", ADDED, "loss", grid=True),
    "SmolLM2 whole, weights 3-d": SkillMerges("whole", ADDED, grid=True),
    "SmolLM2 whole, weights 3-d, loss": SkillMerges("whole", ADDED, "loss", grid=True),
    "SmolLM2 ordered, ties 6-d": SkillMerges("ordered", TIES),
    "SmolLM2 ordered, ties 6-d, loss": SkillMerges("ordered", TIES, "loss"),
    "SmolLM2 written, blocks 12-d": SkillMerges("written", BLOCKS),
    "SmolLM2 written, blocks 12-d, loss": SkillMerges("written", BLOCKS, "loss"),
    "SmolLM2 eight, weights 8-d": SkillMerges("eight", ADDED, groups=4),
}
LIVE = frozenset(name for name, merges in SKILL_MERGES.items() if not merges.grid)

LANGUAGE_MODEL_PROBLEMS: Mapping[str, Callable[[Path], Problem]] = {
    name: partial(merges.made, name) for name, merges in SKILL_MERGES.items()
}
