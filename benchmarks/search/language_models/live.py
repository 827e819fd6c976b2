"""Merges of these experts, made in the loaded model and read at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.search.answer_margins import end_tokens
from benchmarks.search.language_models.measured import Measured, Reading
from benchmarks.search.language_models.skills import SEARCH, Split, asked_items
from benchmarks.search.language_models.train_experts import PLANS, tokens_of, trained
from benchmarks.search.language_models.upper_layers import UpperLayers
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace


@dataclass
class Experts:
    """The experts of a set, whose skills are asked; the model is loaded when the first merge is measured."""

    name: str
    measured: Measured
    split: Split = "search"
    most_items: int | None = None
    """Of each skill (default: all)."""

    @property
    def skills(self) -> tuple[str, ...]:
        return PLANS[self.name].skills

    @cached_property
    def _live(self) -> tuple[LocalBackend, UpperLayers]:
        experts = trained(self.name)
        backend = LocalBackend.from_checkpoints(
            PLANS[self.name].base.folder,
            {skill: experts / skill for skill in self.skills},
            device="cpu",
            dtype="float32",
        )
        backend.model.set_attn_implementation("eager")
        names = list(self.skills)
        base = MergeSpace(names, base_model="base", method="task_arithmetic", parameters={"weight": [0, 1]})
        with backend.apply(base.recipe({f"weight[{skill}]": 0.0 for skill in names})) as model:
            items = [asked_items(skill, self.split)[: self.most_items] for skill in self.skills]
            asked = [
                tokens_of(model.tokenizer, own[first : first + SEARCH])
                for own in items
                for first in range(0, len(own), SEARCH)
            ]
            with fast_linear_layers(model.model):
                return backend, UpperLayers(
                    model.model, PLANS[self.name].base.first_layer, asked, end_tokens(model.tokenizer)
                )

    def reading(self, recipe: Recipe) -> Reading:
        """Of the items, skill by skill."""
        return self.measured.read(recipe.digest, lambda: self._measure(recipe))

    def _measure(self, recipe: Recipe) -> tuple[Any, Any]:
        backend, layers = self._live
        with backend.apply(recipe) as model, fast_linear_layers(model.model):
            margins, losses = layers.read()
        return np.concatenate(margins), np.concatenate(losses)
