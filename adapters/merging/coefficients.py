"""What a recipe says about one tensor, as plain numbers that can be compared and cached."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mergefront.optimizer.recipes.grouping import Grouping
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod, ParameterValue

if TYPE_CHECKING:
    import torch


class RecipeLike(Protocol):
    """What the engine needs of a recipe; a mergekit configuration with slices is one as well."""

    @property
    def method(self) -> str: ...

    @property
    def models(self) -> Mapping[str, str]: ...

    @property
    def seed(self) -> int: ...

    def coefficient(self, parameter: str, expert: str | None, tensor_name: str) -> ParameterValue: ...


@dataclass(frozen=True)
class Coefficients:
    """Every parameter of a method for one tensor: ``models`` in the recipe's order, values aligned to them."""

    method: str
    models: tuple[str, ...]
    per_model: tuple[tuple[str, tuple[ParameterValue, ...]], ...]
    shared: tuple[tuple[str, ParameterValue], ...]
    seed: int
    with_base: bool = True

    def of_models(self, parameter: str) -> tuple[Any, ...]:
        """The parameter's value for every model."""
        return next(values for name, values in self.per_model if name == parameter)

    def of_model(self, model: str) -> dict[str, Any]:
        """The value of every parameter that each model has, for one of them."""
        place = self.models.index(model)
        return {name: values[place] for name, values in self.per_model}

    def of_recipe(self, parameter: str) -> Any:
        """The value of a parameter that the whole merge has."""
        return next(value for name, value in self.shared if name == parameter)


@dataclass(frozen=True)
class TensorMerge:
    """One tensor of a merge: its name, the method, the numbers, and the base's tensor (None without a base).

    ``kept`` is the dtype whose digits a wider target keeps (None: its own).
    """

    name: str
    method: MergeMethod
    coefficients: Coefficients
    base: torch.Tensor | None
    kept: torch.dtype | None = None

    @property
    def origin(self) -> torch.Tensor:
        """The base's tensor, for methods that need one."""
        assert self.base is not None
        return self.base


def read_coefficients(recipe: RecipeLike, method: MergeMethod, models: Sequence[str], tensor_name: str) -> Coefficients:
    """Ask the recipe for every parameter of the method at one tensor."""
    per_model = []
    shared = []
    for parameter in method.parameters:
        if parameter.scope == "model":
            values = tuple(recipe.coefficient(parameter.name, model, tensor_name) for model in models)
            per_model.append((parameter.name, values))
        else:
            shared.append((parameter.name, recipe.coefficient(parameter.name, None, tensor_name)))
    seed = recipe.seed if method.stochastic else 0
    # A method that can do without a base does so when the recipe names none.
    with_base = not method.optional_base or getattr(recipe, "base_model", "") is not None
    return Coefficients(method.name, tuple(models), tuple(per_model), tuple(shared), seed, with_base)


class CoefficientReader:
    """``read_coefficients`` with one look-up per group of tensors that a recipe cannot tell apart."""

    def __init__(self, recipe: RecipeLike) -> None:
        self._recipe = recipe
        self._method = METHODS[recipe.method]
        self._models = tuple(recipe.models)
        self._known: dict[Hashable, Coefficients] = {}

    def __call__(self, tensor_name: str) -> Coefficients:
        key = self._group_of(tensor_name)
        if key not in self._known:
            self._known[key] = read_coefficients(self._recipe, self._method, self._models, tensor_name)
        return self._known[key]

    def _group_of(self, tensor_name: str) -> Hashable:
        grouping = getattr(self._recipe, "grouping", None)
        if not isinstance(grouping, Grouping):
            return tensor_name
        layer = grouping.layer_of(tensor_name)
        return (grouping.module_of(tensor_name), grouping.position_of(tensor_name), layer)
