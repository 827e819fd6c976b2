"""Records of a file of data, JSON lines or Parquet, and the keys of items that are made of their columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergefront.optimizer.foreign_text import file_content

_COLUMN = re.compile(r"\{([^{}]+)\}")


def read_records(path: Path) -> Sequence[bytes]:
    """The records of a file, a JSON object each; of Parquet, what is no JSON as text.

    Raises ``OSError``, or ``ValueError`` that says what is wrong.
    """
    if path.suffix != ".parquet":
        return file_content(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ValueError("Parquet needs pyarrow: pip install 'mergefront[lm-eval]'") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"no Parquet file: {' '.join(str(error).split()):.100}") from None
    return [json.dumps(row, default=str).encode() for row in rows]


def with_fields(record: Mapping[str, Any], fields: Mapping[Any, str]) -> dict[str, Any]:
    """The keys of an item: each is a column of the record by name, or a text with columns in braces.

    A dot goes into an object or a list (``answers.text``, ``choices.0``). Raises ``ValueError`` for a column that is
    missing.
    """
    return {key: _filled(record, said) for key, said in fields.items()}


def _filled(record: Mapping[str, Any], said: str) -> Any:
    if said in record or _COLUMN.search(said) is None:
        return _column(record, said)

    def text(found: re.Match[str]) -> str:
        value = _column(record, found[1])
        if isinstance(value, dict | list) or value is None:
            raise ValueError(f"{found[1]!r} is no text or number, which a template needs: {value!r:.60}")
        return str(value)

    return _COLUMN.sub(text, said)


def _column(record: Mapping[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ValueError(f"has no column {name!r}; its columns are {', '.join(record)}")
    return value
