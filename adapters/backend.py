"""What a backend is: it turns a recipe into a model that can be asked.

``with backend.apply(recipe) as model:`` makes the merge when entered. Local backends hand out a
live model that the next ``apply`` overwrites, so a model must not be used after its block.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from mergefront.optimizer.recipes.recipe import Recipe

Model = TypeVar("Model", covariant=True)


class AppliedMerge(Protocol[Model]):
    """One recipe being applied: a context manager that yields the merged model.

    Inside the block ``delta_l1`` is the L1 norm of merged minus base weights (None where the backend
    never sees the weights), ``seconds`` the wall time that making the merge took.
    """

    @property
    def delta_l1(self) -> float | None: ...

    @property
    def seconds(self) -> float: ...

    def __enter__(self) -> Model: ...

    def __exit__(self, *raised: Any) -> bool | None: ...


class Backend(Protocol[Model]):
    """Applies recipes, one at a time. Raises ``UserError`` for an expert that it does not hold."""

    def apply(self, recipe: Recipe) -> AppliedMerge[Model]: ...
