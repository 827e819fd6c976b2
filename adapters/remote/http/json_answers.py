"""Strict reading of JSON answers: a field is there and of its kind, or the answer counts as malformed.

Nothing is guessed: a missing number never becomes 0, and ``NaN`` is no number.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from mergefront.optimizer.errors import EvaluationError


class MalformedAnswerError(Exception):
    """The server's answer cannot be read; asking again may help (it may have been damaged on its way)."""


def parse_json(text: str) -> Any:
    """The JSON value in ``text``; raises ``MalformedAnswerError`` for anything else, ``NaN`` included."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"is not valid JSON ({_short(error)})") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def field(value: Any, *path: str | int, kind: type | tuple[type, ...] = object) -> Any:
    """The value at ``path`` (keys and indices) of an answer, of the given ``kind``."""
    here = value
    for depth, part in enumerate(path):
        found = (
            isinstance(here, dict) and part in here
            if isinstance(part, str)
            else isinstance(here, list) and -len(here) <= part < len(here)
        )
        if not found:
            raise MalformedAnswerError(f"has no {_dotted(path[: depth + 1])}")
        here = here[part]
    if kind is not object and (not isinstance(here, kind) or (isinstance(here, bool) and kind is not bool)):
        raise MalformedAnswerError(f"has {_dotted(path)} = {_short(here)}, of another type than expected")
    return here


def fields(value: Any, *path: str | int, kind: type) -> list[Any]:
    """The list at ``path``, all of whose entries are of the given ``kind``."""
    found: list[Any] = field(value, *path, kind=list)
    return [field(found, place, kind=kind) for place in range(len(found))]


def logprob(value: Any, *path: str | int) -> float:
    """A log-probability at ``path``: a finite number, at most 0 up to rounding.

    Raises ``EvaluationError`` (kind "not finite") for null: servers write it for infinite and NaN
    logits, so that asking again would not help.
    """
    found = field(value, *path)
    if found is None:
        raise EvaluationError(
            "the server answered with log-probability null: the merged model's logits are not finite",
            kind="not finite",
        )
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        raise MalformedAnswerError(f"has {_dotted(path)} = {_short(found)}, which is no finite number")
    if found > 1e-3:
        raise EvaluationError(
            f"the server answered with log-probability {found:g}, which is above 0", kind="wrong log-probability"
        )
    return min(float(found), 0.0)


def count(value: Any, *path: str | int) -> int:
    """A number of tokens at ``path``; 0 where the answer has none."""
    try:
        found = field(value, *path)
    except MalformedAnswerError:
        return 0
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**31 else 0


def usage(answer: Any) -> tuple[int, int]:
    """Tokens read and tokens written, as OpenAI's answers have them."""
    return count(answer, "usage", "prompt_tokens"), count(answer, "usage", "completion_tokens")


def excerpt(text: str, longest: int = 200) -> str:
    """The beginning of a text on one line, for messages."""
    flat = " ".join("".join(character if character.isprintable() else " " for character in text[: 4 * longest]).split())
    return flat if len(flat) <= longest else flat[:longest] + " ..."


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path) or "answer"


def _short(value: object) -> str:
    return excerpt(repr(value) if not isinstance(value, Exception) else str(value), 80)
