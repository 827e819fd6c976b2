"""What a user writes, as models of its keys: strict, with every problem in a sentence of its own.

A new option is a field, ``name: type = Field(default, ge=1, description="what it does")``: messages, JSON schema and
documentation follow from it. A type whose JSON schema does not say what it takes has a ``title`` that does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from mergefront.optimizer.errors import UserError, did_you_mean


class Section(BaseModel):
    """Strict: an unknown key and a value of another type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Options(Section):
    """Options of a task, a metric, a sampler: numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class OpenSection(BaseModel):
    """Keys of its own, and any others, which mean something elsewhere."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @property
    def misspelt(self) -> dict[str, str]:
        """The other keys that are nearly its own, each with a sentence that says so."""
        own = type(self).model_fields
        return {
            key: f"unknown key {key!r} {did_you_mean(key, own)}"
            for key in self.model_extra or ()
            if get_close_matches(key, own, n=1, cutoff=_NEARLY)
        }


_NEARLY = 0.8
"""How alike a key and a misspelling of it are (``difflib``); ``system_prompt`` is no ``system``."""

Made = TypeVar("Made", bound=BaseModel)
Schema = Mapping[str, Any]


class PlainSchema(GenerateJsonSchema):
    """Without titles made of names, and without the null that stands for a default worked out elsewhere."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().default_schema(schema)
        return {key: value for key, value in made.items() if key != "default" or value is not None}


def read_section(model: type[Made], given: Mapping[str, Any]) -> tuple[Made | None, list[str]]:
    """The model of what is sound in ``given``, and the problems of the rest (unknown, missing, wrong).

    Wrong values are left at their defaults, so that all else can be checked in the same round; None where a key that
    is required is missing or wrong.
    """
    problems: list[str] = []
    while True:
        try:
            return model.model_validate(given), problems
        except ValidationError as error:
            if problems:
                return None, problems  # only required keys can be missing by now
            problems = [str(problem) for problem in problems_of(error, model, given)]
            wrong = {entry["loc"][0] for entry in error.errors()}
            given = {key: value for key, value in given.items() if key not in wrong}


@dataclass(frozen=True)
class Problem:
    """``where`` it lies in what was given, and the sentence; of an unknown key, which ones are ``known`` there."""

    where: tuple[str | int, ...]
    sentence: str
    known: frozenset[str] | None = None

    def __str__(self) -> str:
        return self.sentence


def problems_of(error: ValidationError, model: type[BaseModel], given: Any) -> list[Problem]:
    """What is wrong with ``given``: of nested forms the innermost that was tried."""
    schema = _schema(model)
    found: dict[tuple[str | int, ...], Problem] = {}
    for entry in error.errors():
        where, value, forms = _located(entry, given, schema)
        found.setdefault(where, _problem(where, value, forms, entry))
    deepest = [where for where in found if not any(other[: len(where)] == where != other for other in found)]
    return [found[where] for where in deepest]


@lru_cache(maxsize=32)
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema(schema_generator=PlainSchema)


def _problem(where: tuple[str | int, ...], value: Any, forms: Sequence[Schema], entry: Mapping[str, Any]) -> Problem:
    kind = entry["type"]
    inside = f"{readable(where[:-1])}: " if len(where) > 1 else ""
    key = str(where[-1]) if where else ""
    if kind == "extra_forbidden":
        known = frozenset(name for form in forms for name in form.get("properties", ()))
        hint = did_you_mean(key, known) if known else "(none is known here)"
        return Problem(where, f"{inside}unknown key {key!r} {hint}", known)
    if kind == "missing" and isinstance(entry["loc"][-1], str):
        return Problem(where, f"{inside}the key {key!r} is missing")
    if kind == "union_tag_invalid":
        tag = str(entry["ctx"]["tag"])
        return Problem(
            where, f"{readable(where)}: unknown type {tag!r} {did_you_mean(tag, map(str, map(_tag, forms)))}"
        )
    if kind == "value_error":
        return Problem(where, f"{readable(where)} is {value!r:.200}; {entry['ctx']['error']}")
    if "url" not in entry:  # a message of our own
        return Problem(where, f"{readable(where)}: {entry['msg']} (given: {value!r:.200})")
    several = sum("properties" in form for form in forms) > 1
    needed = dict.fromkeys("a mapping" if several and "properties" in form else words(form) for form in forms)
    return Problem(where, f"{readable(where)} is {value!r:.200}; it must be {' or '.join(needed)}")


def checked(model: type[Made], given: Mapping[str, Any], name: str) -> Made:
    """The model of all that is given under a ``name``; raises ``UserError`` with every problem."""
    made, problems = read_section(model, given)
    if made is None or problems:
        raise UserError("; ".join(f"{name}: {problem}" for problem in problems))
    return made


def readable(where: Sequence[str | int]) -> str:
    """A place as a user would write it: ``objectives[1].name``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where)
    return text.removeprefix(".")


def _located(entry: Mapping[str, Any], given: Any, schema: Schema) -> tuple[tuple[str | int, ...], Any, list[Schema]]:
    """Where an error lies in what was given, the value there, and what may stand there; of an unknown key what may
    stand around it.

    Parts of a location that name one of several forms of a value are no keys.
    """
    forms = _forms(schema, schema)
    where: list[str | int] = []
    for part in entry["loc"]:
        if len(forms) > 1 and isinstance(given, Mapping) and given.get("type") == part:
            forms = [form for form in forms if _tag(form) == part] or forms
            continue
        if (isinstance(given, Mapping) and part in given) or (
            isinstance(given, (list, tuple)) and isinstance(part, int) and part < len(given)
        ):
            given = given[part]
        elif entry["type"] != "missing" or part != entry["loc"][-1] or isinstance(part, int):  # a list is too short
            forms = [form for form in forms if part in (form.get("title"), _tag(form))] or forms
            continue
        where.append(part)
        inner = [found for form in forms for found in _inside(form, part, schema)]
        forms = inner or forms
    return tuple(where), given, forms


def _forms(schema: Schema, root: Schema) -> list[Schema]:
    """The forms that a value may have, besides null."""
    if "$ref" in schema:
        return _forms(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    several = schema.get("anyOf", schema.get("oneOf")) if "title" not in schema else None
    if several is None:
        return [] if schema.get("type") == "null" else [schema]
    return [form for one in several for form in _forms(one, root)]


def _inside(form: Schema, part: str | int, root: Schema) -> list[Schema]:
    if isinstance(part, int):
        inner = dict(enumerate(form.get("prefixItems", ()))).get(part, form.get("items"))
        return _forms(inner, root) if isinstance(inner, Mapping) else []
    inner = form.get("properties", {}).get(part, form.get("additionalProperties"))
    return _forms(inner, root) if isinstance(inner, Mapping) else []


def _tag(form: Schema) -> Any:
    return form.get("properties", {}).get("type", {}).get("const")


def words(form: Schema) -> str:
    """What one form of a JSON schema takes, in words."""
    if "properties" in form:
        keys = list(form["properties"])
        return f"a mapping with the keys {', '.join(keys[:_MOST_KEYS])}{' ...' if len(keys) > _MOST_KEYS else ''}"
    if "title" in form:
        return str(form["title"])
    if "enum" in form:
        return listed([str(value) for value in form["enum"]])
    if "const" in form:
        return str(form["const"])
    kind = str(form.get("type"))
    return _KINDS.get(kind, f"a value of type {kind}") + _bounds(form)


_MOST_KEYS = 10
_KINDS = {
    "boolean": "true or false",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "array": "a list",
    "object": "a mapping",
}


def listed(values: Sequence[str]) -> str:
    return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)


def _bounds(form: Schema) -> str:
    low, high = form.get("minimum"), form.get("maximum")
    above, below = form.get("exclusiveMinimum"), form.get("exclusiveMaximum")
    if (low, above) != (None, None) and (high, below) != (None, None):
        opened, closed = ("[", low) if above is None else ("(", above), ("]", high) if below is None else (")", below)
        return f" in {opened[0]}{opened[1]}, {closed[1]}{closed[0]}"
    fewest = form.get("minItems", form.get("minProperties"))
    if fewest is not None:
        return f" of at least {fewest}"
    if "pattern" in form:
        return f" that matches {form['pattern']}"
    bounds: list[tuple[str, Any]] = [(" of at least", low), (" above", above), (" of at most", high), (" below", below)]
    return "".join(f"{said} {value}" for said, value in bounds if value is not None)
