"""JSON as every database keeps it: numbers that JSON does not know spelled out, keys in the order they were written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import JSON, Dialect, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(value: Any) -> str:
    """JSON without the numbers that it does not know, which servers refuse: ``{"number": "nan"}`` stands for one."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_spelled_out(value))


def _spelled_out(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _spelled_out(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_spelled_out(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return value


def from_json(given: str | bytes) -> Any:
    """The value of a JSON text that mergefront wrote, numbers that JSON does not know among it."""
    text = given if isinstance(given, str) else given.decode()
    if text == "{}":  # most of what an evaluation keeps, thousands of times when a long study is read
        return {}
    return json.loads(text, object_hook=_number_or_mapping) if '{"number": "' in text else json.loads(text)


def _number_or_mapping(found: dict[str, Any]) -> Any:
    number = found["number"] if found.keys() == {"number"} else None
    return _NUMBERS.get(number, found) if isinstance(number, str) else found


def mysql_type(name: str, **given: Any) -> TypeEngine[Any]:
    """A type of MySQL's own; its dialect is slow to import, and needed there alone."""
    from sqlalchemy.dialects import mysql

    made: TypeEngine[Any] = getattr(mysql, name)(**given)
    return made


class _JsonText(TypeDecorator[Any]):
    """JSON in a column of text."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return mysql_type("LONGTEXT")

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        return to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else from_json(value)


# MySQL's own JSON type sorts keys, and parameters are searched in the order in which they were written.
Json = JSON().with_variant(_JsonText(), "mysql")
