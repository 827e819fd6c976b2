"""What users write of experts that become fewer: in a file for ``mergefront merge``, and in a study file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from mergefront.optimizer.recipes.methods import MERGE_EXPERTS
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.sections import Section

MIXTURE = "mixture"
"""What the one model of a recipe of ``merge_experts`` is called."""
Count = Annotated[int, Field(ge=1)]


class _ExpertsSection(Section):
    method: Literal["frequency", "subspace", "most_used"] = Field(
        description="grouped by router logits, by outputs in the groups' subspace, or left out but the most used"
    )
    prompts: str = Field(description="a JSONL file of texts, or prompts with answers, by which experts are compared")
    rank: float = Field(default=1.0, gt=0, le=1, description="of subspace: the share of the directions that is kept")


class ExpertsSection(_ExpertsSection):
    """How experts become fewer."""

    keep: Count | list[Count] = Field(
        description="how many experts every layer keeps, or a list with a number for each layer of the model"
    )


class MergeExpertsSection(Section):
    """The keys of a file for ``mergefront merge``."""

    merge_method: Literal["merge_experts"]
    base_model: str
    experts: ExpertsSection


class KeepChoices(Section):
    """Some numbers of experts."""

    choices: Annotated[list[Count], Field(min_length=2)]


class ExpertsSpaceSection(Section):
    """How many experts are searched."""

    keep: Annotated[list[Count], Field(min_length=2, max_length=2)] | KeepChoices = Field(
        description="how many experts a layer keeps: [least, most], or {choices: [...]}"
    )
    granularity: Literal["global", "layers"] = Field(
        default="global", description="one number for all layers, or one for each layer with experts"
    )


class SearchedExpertsSection(_ExpertsSection):
    """How experts become fewer, and how many are searched."""

    space: ExpertsSpaceSection

    def as_space(self) -> dict[str, Any]:
        """The same as a space of the method's parameters."""
        keep = self.space.keep
        searched: Mapping[str, Any] = (
            keep.model_dump() if isinstance(keep, KeepChoices) else {"low": keep[0], "high": keep[1], "step": 1}
        )
        return {
            "keep": dict(searched), "groups": self.method, "rank": self.rank, "granularity": self.space.granularity,
        }  # fmt: skip


def as_file(recipe: Recipe, base_model: str, prompts: str) -> dict[str, Any]:
    """A recipe as ``merge_experts`` reads it."""
    layers = recipe.grouping.layers if recipe.grouping.starts else 0
    kept = [int(recipe.coefficient("keep", None, f"layers.{layer}.")) for layer in range(max(1, layers))]
    experts = {
        "method": recipe.coefficient("groups", None, ""),
        "keep": kept if layers else kept[0],
        "rank": recipe.coefficient("rank", None, ""),
        "prompts": prompts,
    }
    return {"merge_method": MERGE_EXPERTS.name, "base_model": base_model, "experts": experts}
