"""Strict reading of JSON answers: a field is there and of its kind, or the answer counts as malformed.

Nothing is guessed: a missing number never becomes 0, and ``NaN`` is no number.
"""

from __future__ import annotations

import json
import math
from typing import Any

from mergefront.optimizer.errors import EvaluationError


class DamagedAnswerError(Exception):
    """The server's answer is no JSON; asking again may help, since it may have been damaged on its way."""


class MalformedAnswerError(EvaluationError):
    """The server's answer is JSON and lacks what was asked for, so that asking again would not help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind="malformed response")


def parse_json(text: str) -> Any:
    """The JSON value in ``text``, with null for NaN and infinities, which some servers write as they are.

    Raises ``DamagedAnswerError`` for anything else, and ``MalformedAnswerError`` for a stream of events.
    """
    text = text.removeprefix("\ufeff").strip()
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        if text.startswith(("data:", "event:", ": ")):
            raise MalformedAnswerError("is a stream of events; use an endpoint that answers at once") from None
        if text.startswith("<"):
            raise DamagedAnswerError("is a web page; is the address right?") from None
        raise DamagedAnswerError(f"is not valid JSON ({_short(error)})") from None


def stated_error(answer: Any) -> tuple[int, str] | None:
    """Status and text of an error that a server reports in an answer of status 200; the status is 200 where the
    error has none of its own.

    Proxies do so once they have begun to answer, at the top or in the place of a choice.
    """
    if not isinstance(answer, dict):
        return None
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = answer.get("error") or first.get("error") or (answer if answer.get("object") == "error" else None)
    if not error:
        return None
    codes = [str(error.get(key)) for key in ("code", "status", "http_status")] if isinstance(error, dict) else []
    status = next((int(code) for code in codes if code.isdecimal() and len(code) == 3 and code[0] in "45"), 200)
    return status, error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)


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


def count(value: Any, *path: str | int) -> int | None:
    """A number of tokens at ``path``; None where the answer has none."""
    try:
        found = field(value, *path)
    except MalformedAnswerError:
        return None
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 2**31 else None


def usage(answer: Any) -> tuple[int | None, int | None]:
    """Tokens read and tokens written, as OpenAI's answers have them; None is unknown.

    No prompt has 0 tokens: servers that write so have not counted.
    """
    read, written = count(answer, "usage", "prompt_tokens"), count(answer, "usage", "completion_tokens")
    return (read, written) if read else (None, written or None)


def excerpt(text: str, longest: int = 200) -> str:
    """The beginning of a text on one line, for messages."""
    flat = " ".join("".join(character if character.isprintable() else " " for character in text[: 4 * longest]).split())
    return flat if len(flat) <= longest else flat[:longest] + " ..."


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path) or "answer"


def _short(value: object) -> str:
    return excerpt(repr(value) if not isinstance(value, Exception) else str(value), 80)
