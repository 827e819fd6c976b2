"""A merge method of the user's own: one decorated function, whose signature is its declaration.

    from mergefront.optimizer.recipes.merge_method import Range, merge_method

    @merge_method("halfway")
    def halfway(tensors, base, *, weight: tuple[float, ...], pull: Annotated[float, Range(0, 1)] = 0.5):
        mean = sum(w * (x - base) for w, x in zip(weight, tensors)) / len(tensors)
        return base + pull * mean

The function merges one tensor: ``tensors`` are the experts' (float32, the base's shape), ``base`` the
base's. Keyword arguments are the method's parameters: a tuple of floats has one value per expert, a
float or bool one for the whole merge.
"""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import METHODS, MergeMethod, MethodParameter

_PER_EXPERT = (tuple, list, collections.abc.Sequence)


@dataclass(frozen=True)
class Range:
    """What a parameter accepts (``low`` to ``high``), and what a space searches (``search``, default the same)."""

    low: float = float("-inf")
    high: float = float("inf")
    search: tuple[float, float] | None = None
    doc: str = ""
    default: float | None = None


def merge_method(
    name: str,
    *,
    needs_base: bool = True,
    min_models: int = 1,
    max_models: int | None = None,
    elementwise: bool = False,
    source: str = "user-defined",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the merge method ``name``, for spaces, recipes, study files and engine.

    ``elementwise`` says that any stretch of a tensor may be merged alone (faster). A default of a
    per-expert parameter stands in its ``Range``. Raises ``UserError`` for a name that is taken and for
    parameters that are neither numbers, switches nor tuples of numbers.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        summary = (inspect.getdoc(function) or "user-defined").splitlines()[0]
        METHODS.add(
            MergeMethod(
                name,
                summary,
                source,
                _parameters(name, function),
                needs_base=needs_base,
                min_models=min_models,
                max_models=max_models,
                kernel=function,
                elementwise=elementwise,
            )
        )
        return function

    return register


def _parameters(method: str, function: Callable[..., Any]) -> tuple[MethodParameter, ...]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError:
        hints = function.__annotations__
    declared = inspect.signature(function).parameters.values()
    return tuple(
        _parameter(method, parameter, hints.get(parameter.name))
        for parameter in declared
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    )


def _parameter(method: str, parameter: inspect.Parameter, hint: Any) -> MethodParameter:
    given = Range()
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        given = next((extra for extra in extras if isinstance(extra, Range)), given)
    name = parameter.name.removesuffix("_")
    default = given.default if parameter.default is inspect.Parameter.empty else parameter.default
    per_expert = hint in _PER_EXPERT or get_origin(hint) in _PER_EXPERT
    if hint is bool:
        return MethodParameter(name, "recipe", default, given.doc, choices=(True, False))
    if get_origin(hint) is Literal:
        return MethodParameter(name, "recipe", default, given.doc, choices=get_args(hint))
    if hint not in (float, int) and not per_expert:
        raise UserError(
            f"merge method {method!r}: parameter {parameter.name!r} must be annotated float, bool, Literal[...] "
            f"or tuple[float, ...] (one value per expert), not {hint!r}"
        )
    finite = given.low > float("-inf") and given.high < float("inf")
    search = given.search or ((given.low, given.high) if finite else (0.0, 1.0))
    scope: Literal["model", "recipe"] = "model" if per_expert else "recipe"
    return MethodParameter(name, scope, default, given.doc, low=given.low, high=given.high, search=search)
