"""The JSON schemas of study files and pool files, for editors: made from the models and registries that read them.

They say of one file what can be said without looking at anything else; ``mergefront check`` says the rest. A schema is
of draft 7, which every editor knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from mergefront.adapters.tasks.task_types import TASK_TYPES
from mergefront.optimizer.recipes.methods import MERGE_EXPERTS, METHODS, MergeMethod, MethodParameter
from mergefront.optimizer.samplers.registry import SAMPLERS
from mergefront.optimizer.sections import PlainSchema
from mergefront.serving.merges.pool_settings import PoolFile
from mergefront.study.starting_points import START_POINTS
from mergefront.study.study_file import StudyFile

Schema = dict[str, Any]
_DRAFT = "http://json-schema.org/draft-07/schema#"


def pool_schema() -> Schema:
    """The schema of the pool file of ``mergefront serve``."""
    return {"$schema": _DRAFT, **_schema_of(PoolFile)}


def study_schema() -> Schema:
    """The schema of a study file. Methods of the user's own are taken where the file names ``method_files``."""
    made = _schema_of(StudyFile)
    definitions, properties = made["$defs"], made["properties"]
    properties["tasks"]["additionalProperties"] = {"oneOf": _tasks(definitions)}
    properties["search"] = {"oneOf": _searches(definitions["SearchSection"]["properties"])}
    del definitions["SearchSection"]
    grouping = definitions.pop("SpaceSection")["properties"]
    merge = definitions["MergeSection"]
    merge["properties"]["space"] = {"type": "object"}
    merge["required"].remove("models")
    merge["oneOf"] = [{"required": ["models"]}, {"required": ["training_run"]}, {"required": ["experts"]}]
    known = {"enum": [*METHODS, MERGE_EXPERTS.name]}
    several = {"type": "array", "minItems": 1, "uniqueItems": True, "items": known}
    merge["allOf"] = [
        {"if": {"required": ["method_files"]}, "else": {"properties": {"method": {"anyOf": [known, several]}}}},
        *[_if_method({"const": name}, [method], grouping, definitions) for name, method in METHODS.items()],
        _if_method(several, METHODS.values(), grouping, definitions),
    ]
    return {"$schema": _DRAFT, **made}


def _schema_of(model: type[BaseModel]) -> Schema:
    made: Schema = _of_draft_7(model.model_json_schema(schema_generator=PlainSchema))
    return made


def _of_draft_7(part: Any) -> Any:
    """Pairs are written as lists of two, and no title is the name of a class."""
    if isinstance(part, list):
        return [_of_draft_7(one) for one in part]
    if not isinstance(part, dict):
        return part
    made = {key: _of_draft_7(value) for key, value in part.items() if key != "discriminator"}
    if "prefixItems" in made:
        made["items"] = made.pop("prefixItems")[0]
    if "properties" in made and isinstance(made.get("title"), str):
        del made["title"]
    return made


def _tasks(definitions: Schema) -> list[Schema]:
    """The entries of each type of task; models inside them join the ``definitions``."""
    found = []
    for name, task_type in TASK_TYPES.items():
        entry = _schema_of(task_type.options)
        definitions.update(entry.pop("$defs", {}))
        entry["properties"] = {"type": {"const": name}, **entry["properties"]}
        entry["required"] = ["type", *entry.get("required", [])]
        found.append(entry)
    return found


def _searches(common: Schema) -> list[Schema]:
    """The search section of each sampler, with its options."""
    usual = common["sampler"]["default"]
    found = []
    for name, spec in SAMPLERS.items():
        options = _schema_of(spec.options)["properties"] if spec.options.model_fields else {}
        found.append(
            {
                "type": "object",
                "additionalProperties": False,
                "required": [] if name == usual else ["sampler"],
                "properties": {**common, "sampler": {"const": name, "description": spec.summary}, **options},
            }
        )
    return found


def _if_method(asked: Schema, methods: Iterable[MergeMethod], grouping: Schema, definitions: Schema) -> Schema:
    """What a space may say beside its ``grouping`` where ``method`` is what is ``asked``; its parameters join the
    ``definitions``."""
    parameters = {one.name: _defined(one, definitions) for method in methods for one in method.parameters}
    space = {
        "type": "object",
        "additionalProperties": False,
        "properties": {**grouping, **parameters},
        "patternProperties": {rf"^{name}\[.+\]$": value for name, value in parameters.items()},
    }
    return {
        "if": {"properties": {"method": asked}, "required": ["method"]},
        "then": {"properties": {"space": space}},
    }


def _defined(parameter: MethodParameter, definitions: Schema) -> Schema:
    """A reference to what a parameter takes; methods whose parameters are alike share it."""
    made, name, number = _coefficient(parameter), parameter.name, 1
    while definitions.setdefault(name, made) != made:
        number += 1
        name = f"{parameter.name}_{number}"
    return {"$ref": f"#/$defs/{name}"}


def _coefficient(parameter: MethodParameter) -> Schema:
    """What may stand for one coefficient: a value, or what is searched."""
    value = {"enum": list(parameter.choices)} if parameter.choices else _number(parameter.low, parameter.high)
    several = {"type": "array", "minItems": 1, "items": value}
    forms: list[Schema] = [value, _mapping({"choices": several}, ["choices"])]
    if not parameter.choices:
        forms += [
            {"type": "array", "minItems": 2, "maxItems": 2, "items": value},
            _mapping(
                {
                    "low": value,
                    "high": value,
                    "log": {"type": "boolean"},
                    "step": {"type": "number", "exclusiveMinimum": 0},
                },
                ["low", "high"],
            ),
        ]
    if parameter.name == "weight":
        width = {"type": "number", "exclusiveMinimum": 0}
        forms.append(_mapping({"around": {"enum": list(START_POINTS)}, "width": width}, ["around", "width"]))
    return {"anyOf": forms, "description": f"{parameter.doc}: a range [low, high], or one fixed value"}


def _mapping(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": dict(properties)}


def _number(low: float, high: float) -> Schema:
    bounds = {"minimum": low, "maximum": high}
    return {"type": "number", **{name: bound for name, bound in bounds.items() if math.isfinite(bound)}}
