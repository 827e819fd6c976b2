"""The structure of a mergekit configuration: which of its parts are mappings, lists, words.

What the parts mean is checked by those who read them; they may rely on the structure.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.methods import MethodParameter
from mergefront.optimizer.sections import Section, read_section

IGNORED_PARAMETERS = ("int8_mask", "normalize")
"""Parameters that mergekit-evolve writes for every method, and that change nothing where a method has no such one."""


def plain_value(value: Any, parameter: MethodParameter) -> Any:
    """A parameter's value as mergekit reads it: switches may be written as numbers, rescale as a switch."""
    of_switch = parameter.name == "rescale" or isinstance((*parameter.choices, None)[0], bool)
    if of_switch and not isinstance(value, str) and value in (0, 1):
        return bool(value) if parameter.name != "rescale" else "l1" if value else "none"
    return value


def check_structure(content: Mapping[str, Any]) -> None:
    """Raises ``UserError`` with every part of a configuration that has the wrong shape."""
    problems = read_section(_Configuration, content)[1]
    if problems:
        raise UserError("mergekit configuration:\n" + "\n".join(f"  - {line}" for line in problems))


def repeated_models(models: Iterable[str]) -> list[str]:
    """What is wrong with a list of models, a line for each that is in it twice."""
    return [
        f"the model {model} is listed twice; list it once, with the sum of the weights"
        for model, times in Counter(models).items()
        if times > 1
    ]


def _could_be(reference: str) -> str:
    """No system has longer names or paths, nor any with a NUL."""
    parts = reference.split("/")
    if not 0 < len(reference) <= 4000 or "\0" in reference or any(len(os.fsencode(part)) > 255 for part in parts):
        raise PydanticCustomError("reference", "it must be a name or path")
    return reference


_Reference = Annotated[str, AfterValidator(_could_be), Field(title="a name or path")]
_Scalar = Annotated[bool | int | float | str, Field(title="a number or a word")]
_Gradient = Annotated[list[_Scalar], Field(min_length=1, title="a gradient, a list of numbers")]


class _Part(Section):
    """What its other keys may be is said by those who read them."""

    model_config = ConfigDict(extra="ignore")


class _Rule(Section):
    value: _Scalar | _Gradient
    filter: str | None = None


_Rules = Annotated[list[_Rule], Field(min_length=1, title="a list of rules, {filter: ..., value: ...}")]
_Parameters = dict[Any, _Scalar | _Gradient | _Rule | _Rules]


class _Model(_Part):
    model: _Reference
    parameters: _Parameters | None = None
    layer_range: Annotated[list[Any], Field(title="[first, end)")] | None = None


class _Slice(_Part):
    sources: list[_Model] | None = None
    parameters: _Parameters | None = None
    base_model: _Reference | None = None


class _Configuration(_Part):
    merge_method: _Reference = ""
    base_model: _Reference | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    parameters: _Parameters | None = None
    models: list[_Model] | None = None
    slices: list[_Slice] | None = None
