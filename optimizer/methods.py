"""Merge methods as data: what each one is called, what it needs, which coefficients it takes.

A method declares its parameters, ranges and defaults here once; the space, the study file, the
docs table and the error messages read them from here. The arithmetic is in
``mergefront.adapters.merging``: methods of the task-vector family are a combination of a
``sparsifier`` and a ``consensus``, the others name a ``kernel``.

Names and defaults follow mergekit (https://github.com/arcee-ai/mergekit) unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from mergefront.optimizer.errors import UserError, did_you_mean

ParameterValue = float | int | bool | str


@dataclass(frozen=True)
class MethodParameter:
    """One coefficient of a merge method.

    ``scope`` is "model" when every expert has its own (``weight[maths]``) and "recipe" when the
    whole merge has one (``lambda``). ``low`` and ``high`` bound what is accepted; ``search`` is the
    range that a space takes when it only names the parameter. ``default`` None means that the
    user has to give a value or a range.
    """

    name: str
    scope: Literal["model", "recipe"]
    default: ParameterValue | None
    doc: str
    low: float = float("-inf")
    high: float = float("inf")
    search: tuple[float, float] = (0.0, 1.0)
    choices: tuple[ParameterValue, ...] = ()

    def check(self, value: object) -> str | None:
        """What is wrong with ``value``, or None when the method accepts it."""
        if self.choices:
            if value not in self.choices or isinstance(value, bool) != isinstance(self.choices[0], bool):
                return f"{self.name} is {value!r}; it must be one of {', '.join(map(str, self.choices))}"
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"{self.name} is {value!r}; it must be a number"
        if not self.low <= value <= self.high:
            return f"{self.name} is {value!r}; it must lie in [{self.low:g}, {self.high:g}]"
        return None


@dataclass(frozen=True)
class MergeMethod:
    """One row of the registry.

    A method of the task-vector family has a ``consensus`` ("none" or "sign") and a ``sparsifier``;
    any other has a ``kernel``: a callable, or its dotted name ``module:function``, which is
    imported when the method is first used. It is called for every tensor as
    ``kernel(tensors, base, **parameters)`` with float32 tensors in the recipe's order (``base`` is None
    without one) and returns the merged tensor; a parameter of scope "model" is a tuple aligned to
    ``tensors``. ``elementwise`` says that any stretch of entries may be merged alone.
    """

    name: str
    summary: str
    source: str
    parameters: tuple[MethodParameter, ...]
    needs_base: bool = True
    optional_base: bool = False
    min_models: int = 1
    max_models: int | None = None
    sparsifier: Literal["none", "magnitude", "bernoulli", "rank", "breadcrumbs"] = "none"
    consensus: Literal["none", "sign"] | None = None
    kernel: str | Callable[..., Any] | None = None
    elementwise: bool = False
    stochastic: bool = False

    def parameter(self, name: str) -> MethodParameter | None:
        """The parameter called ``name``, or None when this method has no such parameter."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def load_kernel(self) -> Callable[..., Any]:
        """The kernel as a callable; raises ``UserError`` when its module does not have it."""
        if not isinstance(self.kernel, str):
            if self.kernel is None:
                raise UserError(f"{self.name} has no kernel; the task-vector family is merged by sparsifier and consensus")
            return self.kernel
        module, _, function = self.kernel.partition(":")
        try:
            loaded: Callable[..., Any] = getattr(import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(f"merge method {self.name!r}: its kernel {self.kernel!r} cannot be imported: {error}") from None
        return loaded


WEIGHT = MethodParameter("weight", "model", None, "multiplies the expert's task vector (or the expert itself)")
DENSITY = MethodParameter(
    "density", "model", 1.0, "fraction of the task vector's entries that is kept", low=0.0, high=1.0, search=(0.1, 1.0)
)
LAMBDA = MethodParameter("lambda", "recipe", 1.0, "multiplies the merged task vector", search=(0.5, 1.5))


def normalize(default: bool) -> MethodParameter:
    """The switch that divides by the sum of the weights that took part."""
    return MethodParameter(
        "normalize", "recipe", default, "divide by the sum of the weights that took part", choices=(True, False)
    )


RESCALE = MethodParameter(
    "rescale",
    "recipe",
    "l1",
    "after dropping entries: restore the L1 norm (mergekit), divide by the density (the DARE paper), or leave as is",
    choices=("l1", "density", "none"),
)
INTERPOLATION = MethodParameter("t", "recipe", None, "0 is the first model, 1 the second", low=0.0, high=1.0)

_METHODS = (
    MergeMethod(
        "linear",
        "weighted average of the experts",
        "Model Soups, arXiv 2203.05482",
        (WEIGHT, normalize(True)),
        needs_base=False,
        kernel="mergefront.adapters.merging.linear:merge",
        elementwise=True,
    ),
    MergeMethod(
        "task_arithmetic",
        "base plus the weighted sum of task vectors",
        "arXiv 2212.04089",
        (WEIGHT, LAMBDA, normalize(False)),
        consensus="none",
    ),
    MergeMethod(
        "ties",
        "keep the largest entries, elect a sign, average those that agree",
        "TIES, arXiv 2306.01708",
        (WEIGHT, DENSITY, LAMBDA, normalize(True)),
        sparsifier="magnitude",
        consensus="sign",
    ),
    MergeMethod(
        "dare_linear",
        "drop entries at random, rescale, add",
        "DARE, arXiv 2311.03099",
        (WEIGHT, DENSITY, LAMBDA, normalize(False), RESCALE),
        sparsifier="bernoulli",
        consensus="none",
        stochastic=True,
    ),
    MergeMethod(
        "dare_ties",
        "drop entries at random, rescale, elect a sign, add",
        "DARE, arXiv 2311.03099",
        (WEIGHT, DENSITY, LAMBDA, normalize(False), RESCALE),
        sparsifier="bernoulli",
        consensus="sign",
        stochastic=True,
    ),
    MergeMethod(
        "slerp",
        "spherical interpolation between two models",
        "mergekit 0.1.5",
        (INTERPOLATION,),
        needs_base=False,
        min_models=2,
        max_models=2,
        kernel="mergefront.adapters.merging.slerp:merge",
    ),
)


class MethodRegistry(Mapping[str, MergeMethod]):
    """Merge methods by name; looking up an unknown one raises ``UserError`` with the nearest name."""

    def __init__(self, methods: tuple[MergeMethod, ...]) -> None:
        self._methods = {method.name: method for method in methods}

    def __getitem__(self, name: str) -> MergeMethod:
        try:
            return self._methods[name]
        except KeyError:
            raise UserError(f"unknown merge method {name!r} {did_you_mean(str(name), self._methods)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[str]:
        return iter(self._methods)

    def __len__(self) -> int:
        return len(self._methods)

    def add(self, method: MergeMethod) -> None:
        """Register a method of the user's own; the name must be free."""
        if method.name in self._methods:
            raise UserError(f"a merge method called {method.name!r} exists already; choose another name")
        self._methods[method.name] = method


METHODS = MethodRegistry(_METHODS)
