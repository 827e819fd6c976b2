"""A user's method is one function, and everything that reads the registry knows it."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.merge_method import Range, merge_method
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe


@pytest.fixture
def halfway() -> str:
    @merge_method("halfway")
    def kernel(
        tensors: Any,
        base: Any,
        *,
        weight: tuple[float, ...],
        pull: Annotated[float, Range(0, 1)] = 0.5,
        double: bool = False,
    ) -> Any:
        """Part of the way towards the experts."""
        mean = sum(w * (x - base) for w, x in zip(weight, tensors, strict=True)) / len(tensors)
        return base + (2 if double else 1) * pull * mean

    return "halfway"


def test_a_function_may_be_written_anew_under_its_name(halfway: str) -> None:
    """In a notebook the cell that defines a method is run many times."""
    known = len(METHODS)
    for pull in (0.5, 0.75):

        @merge_method("rewritten")
        def kernel(tensors: Any, base: Any, *, pull: Annotated[float, Range(0, 1)] = pull) -> Any:
            """Something else."""
            return base

    assert METHODS["rewritten"].parameter("pull").default == 0.75 and len(METHODS) == known + 1


def test_the_signature_declares_the_method(halfway: str) -> None:
    method = METHODS[halfway]
    assert [(p.name, p.scope, p.default) for p in method.parameters] == [
        ("weight", "model", None),
        ("pull", "recipe", 0.5),
        ("double", "recipe", False),
    ]
    assert method.summary == "Part of the way towards the experts."
    with pytest.raises(UserError, match="pull"):
        Recipe(halfway, {"a": "a"}, {"pull": 1.5})


def test_the_engine_merges_with_it(halfway: str) -> None:
    import torch

    from mergefront.adapters.merging.engine import MergeEngine

    engine = MergeEngine({"w": torch.zeros(3)}, {"a": {"w": torch.ones(3)}, "b": {"w": 3 * torch.ones(3)}})
    recipe = Recipe(halfway, {"a": "a", "b": "b"}, {"weight[a]": 1.0, "weight[b]": 1.0, "double": True}, "base")
    assert dict(engine.iterate(recipe))["w"].tolist() == [2.0] * 3


def test_a_name_that_is_taken_and_a_bad_annotation_are_refused() -> None:
    with pytest.raises(UserError, match="exists already"):
        merge_method("ties")(lambda tensors, base: base)
    with pytest.raises(UserError, match="must be annotated"):

        @merge_method("broken")
        def broken(tensors: Any, base: Any, *, weight: dict[str, float]) -> Any:
            return base
