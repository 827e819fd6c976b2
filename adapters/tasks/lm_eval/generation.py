"""How tasks of the harness generate: the settings that they and their users give, and what greedy search takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergefront.optimizer.errors import UserError, did_you_mean

DEFAULT_NEW_TOKENS = 256
"""What the harness' own Hugging Face model generates at most where a task does not say."""
_LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most tokens of an answer, the first one that is there counting."""
_OF_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")
SETTINGS = ("until", *_LONGEST, *_OF_SAMPLING)


def stop_strings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts at which the harness' settings of a generation end an answer."""
    until: str | Sequence[str] | None = settings.get("until")
    return tuple(text for text in ((until,) if isinstance(until, str) else until or ()) if text)


def longest_answer(settings: Mapping[str, Any]) -> int:
    """The most tokens of an answer, as the harness' settings of a generation have it."""
    return int(next((settings[key] for key in _LONGEST if settings.get(key) is not None), DEFAULT_NEW_TOKENS))


def merged_settings(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A task's settings with the user's in their place, under whichever name. Raises ``UserError`` for unknown ones."""
    for key in given:
        if key not in SETTINGS:
            raise UserError(f"gen_kwargs: unknown key {key!r} {did_you_mean(key, SETTINGS)}")
    named = [key for key in _LONGEST if key in given]
    if len(named) > 1:
        raise UserError(f"gen_kwargs: {' and '.join(named)} say the same; keep one")
    rest = {key: value for key, value in own.items() if not (named and key in _LONGEST)}
    if "do_sample" in given or "temperature" in given:
        rest = {key: value for key, value in rest.items() if key not in _OF_SAMPLING}
    return {**rest, **given}


def not_greedy(settings: Mapping[str, Any]) -> str | None:
    """Why answers by these settings would not be what greedy search writes."""
    temperature = float(settings.get("temperature") or 0.0)
    if temperature > 0 and settings.get("do_sample") is not False:
        return (
            f"the task samples (temperature {temperature:g}), and only greedy answers are compared; set gen_kwargs: "
            "{do_sample: false}"
        )
    other = [f"{key}: {value}" for key, value in settings.items() if key not in SETTINGS and (key, value) not in _IDLE]
    if other:
        return f"the task generates with {', '.join(other)}, and only greedy answers are compared; {_COPY}"
    return None


_IDLE = (("num_beams", 1), ("repetition_penalty", 1.0))
"""Settings that change nothing."""
_COPY = "copy it into a YAML file of your own without"
