"""Kinds of values that options of tasks take. An option is a field of its type's model: see ``optimizer.sections``."""

from __future__ import annotations

from os import PathLike
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from mergefront.optimizer.sections import Options

DEFAULT_REPORT_FRACTION = 0.5
DEFAULT_MAX_UNANSWERED = 0.1


def _as_tuple(value: Any) -> Any:
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[
    Text | PathLike[str], WithJsonSchema({"type": "string", "minLength": 1, "title": "a path"}, mode="validation")
]
Texts = Annotated[
    tuple[Text, ...],
    BeforeValidator(
        _as_tuple,
        json_schema_input_type=Annotated[
            Text | list[Text], Field(title="a text or a list of texts, none of them empty")
        ],
    ),
]
Paths = Annotated[
    tuple[PathText, ...],
    BeforeValidator(
        _as_tuple, json_schema_input_type=Annotated[PathText | list[PathText], Field(title="a path or a list of paths")]
    ),
]
FileBySplit = Annotated[
    dict[Text, PathText], Field(min_length=1, title="one file for each split, such as {test: items.jsonl}")
]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ItemOptions(Options):
    """Which items are the report's, and how many are asked."""

    report_fraction: Fraction | None = Field(
        None, description="the part of the items, chosen by seed, that only the report sees; 0: none"
    )
    search_items: Count | None = Field(None, description="take no more than so many search items, chosen by seed")
    report_items: Count | None = Field(None, description="take no more than so many report items, chosen by seed")


class ThinkingSection(Options):
    """What stands around the thoughts of a model."""

    start: Text = "<think>"
    end: Text = "</think>"


def as_section(value: Any) -> Any:
    """A switch in the place of a section: all of its defaults, or none."""
    return ({} if value else None) if isinstance(value, bool) else value


Thoughts = Annotated[
    ThinkingSection | None, BeforeValidator(as_section, json_schema_input_type=bool | ThinkingSection | None)
]


class SplitOptions(ItemOptions):
    """The same of items that may be left without an answer."""

    max_unanswered: float = Field(
        DEFAULT_MAX_UNANSWERED,
        ge=0,
        le=1,
        description="the share of the items asked that may have no usable answer; above it the candidate fails",
    )
