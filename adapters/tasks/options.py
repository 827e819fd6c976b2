"""Options of a task as data: their names, kinds and ranges, checked all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.optimizer.errors import did_you_mean


@dataclass(frozen=True)
class Option:
    """``wrong`` says what is wrong with a value, or returns None; ``read`` turns it into what is kept."""

    name: str
    wrong: Callable[[Any], str | None]
    required: bool = False
    read: Callable[[Any], Any] = lambda value: value


def check_options(config: Mapping[str, Any], options: Sequence[Option]) -> tuple[dict[str, Any], list[str]]:
    """The sound options, read, and the problems of the others (unknown, missing, wrong)."""
    known = {option.name: option for option in options}
    problems = [f"unknown key {key!r} {did_you_mean(str(key), known)}" for key in config if key not in known]
    sound: dict[str, Any] = {}
    for option in options:
        if option.name not in config:
            if option.required:
                problems.append(f"the key {option.name!r} is missing")
            continue
        wrong = option.wrong(config[option.name])
        if wrong is None:
            sound[option.name] = option.read(config[option.name])
        else:
            problems.append(f"{option.name} is {config[option.name]!r}; it must be {wrong}")
    return sound, problems


def is_text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def is_any_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text (it may be empty)"


def is_path(value: Any) -> str | None:
    return None if hasattr(value, "__fspath__") else ("a path" if is_text(value) else None)


def is_file_by_split(value: Any) -> str | None:
    sound = (
        isinstance(value, Mapping)
        and value
        and all(is_text(a) is None and is_path(b) is None for a, b in value.items())
    )
    return None if sound else "one file for each split, such as {test: items.jsonl}"


def is_switch(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def is_count(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else "an integer of at least 1"


def is_tolerance(value: Any) -> str | None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
    return None if sound else "a number of at least 0"


def is_positive(value: Any) -> str | None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    return None if sound else "a number above 0"


def is_natural(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else "an integer of at least 0"


def is_fraction(value: Any) -> str | None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
    return None if sound else "a number in [0, 1)"


def is_stop(value: Any) -> str | None:
    several = [value] if isinstance(value, str) else value
    sound = isinstance(several, (list, tuple)) and all(isinstance(text, str) and text for text in several)
    return None if sound else "a text or a list of texts, none of them empty"


def as_texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
