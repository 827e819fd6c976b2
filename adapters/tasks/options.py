"""Options of a task as data: their names, kinds and ranges, checked all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.optimizer.errors import did_you_mean

Rule = Callable[[Any], str | None]
"""What a value must be, or None where it is that."""


@dataclass(frozen=True)
class Option:
    """``about`` says in the documentation what it does; ``read`` turns a sound value into what is kept."""

    name: str
    rule: Rule
    about: str
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
        needed = option.rule(config[option.name])
        if needed is None:
            sound[option.name] = option.read(config[option.name])
        else:
            problems.append(f"{option.name} is {config[option.name]!r}; it must be {needed}")
    return sound, problems


def rule(needed: str, sound: Callable[[Any], bool]) -> Rule:
    return lambda value: None if sound(value) else needed


def _number(needed: str, sound: Callable[[Any], bool], kinds: tuple[type, ...] = (int, float)) -> Rule:
    return rule(needed, lambda value: isinstance(value, kinds) and not isinstance(value, bool) and sound(value))


def _names(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _path(value: Any) -> bool:
    return hasattr(value, "__fspath__") or _names(value)


is_text = rule("a text", _names)
is_delimiter = rule(
    "a text (it may be empty), or null: as the data says", lambda value: value is None or isinstance(value, str)
)
is_path = rule("a path", _path)
is_file_by_split = rule(
    "one file for each split, such as {test: items.jsonl}",
    lambda value: (
        isinstance(value, Mapping) and bool(value) and all(_names(one) and _path(two) for one, two in value.items())
    ),
)
is_switch = rule("true or false", lambda value: isinstance(value, bool))
is_count = _number("an integer of at least 1", lambda value: value >= 1, (int,))
is_natural = _number("an integer of at least 0", lambda value: value >= 0, (int,))
is_tolerance = _number("a number of at least 0", lambda value: 0 <= value < float("inf"))
is_positive = _number("a number above 0", lambda value: 0 < value < float("inf"))
is_function = rule("a function, written as package.module:name", lambda value: _names(value) and ":" in value)
is_direction = rule("maximize or minimize", lambda value: value in ("maximize", "minimize"))
is_paths = rule(
    "a path or a list of paths",
    lambda value: _path(value) or (isinstance(value, (list, tuple)) and all(map(_path, value))),
)
is_fraction = _number("a number in [0, 1)", lambda value: 0 <= value < 1)
is_share = _number("a number in [0, 1]", lambda value: 0 <= value <= 1)
is_stop = rule(
    "a text or a list of texts, none of them empty",
    lambda value: _names(value) or (isinstance(value, (list, tuple)) and all(map(_names, value))),
)


def as_texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
