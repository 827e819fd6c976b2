"""The fields of a request to an OpenAI-compatible endpoint: what a user may add, and what a model may call them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_RESERVED = frozenset(
    {"model", "prompt", "messages", "input", "suffix", "stop", "stream", "stream_options", "n", "best_of"}
    | {"max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens", "num_predict", "n_predict"}
    | {"echo", "logprobs", "top_logprobs", "prompt_logprobs", "logit_bias"}
)
"""Fields that decide which model is asked what, and how its answer is read."""
_OTHER_NAMES = ("max_completion_tokens", "max_new_tokens", "max_output_tokens", "num_predict", "n_predict")
"""What servers call ``max_tokens``."""
_OPTIONAL = ("stop", "seed")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|extra_forbidden", re.I
)


def request_problem(added: Mapping[str, Any]) -> str | None:
    """Why these fields cannot be added to requests."""
    for name in added:
        if name in _RESERVED:
            return f"{name!r} is set by scoring itself; remove it"
    if added.get("temperature", 0) not in (0, None) or isinstance(added.get("temperature"), bool):
        return (
            f"temperature is {added['temperature']!r}; answers are scored at 0 (null leaves the field out, for models "
            "that take no other than their own)"
        )
    try:
        json.dumps(added, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"it cannot be sent as JSON ({error})"
    return None


class FieldNames:
    """What one model calls the fields of a request, learned from its refusals.

    ``max_tokens`` gets the name that the model gives it. ``stop`` is left out where it is refused, since answers are
    cut at stop strings here as well, and so is the ``seed`` of an answer that is drawn, which is kept once it is there.
    """

    def __init__(self) -> None:
        self._names: dict[str, str | None] = {}

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as this model takes it."""
        named = ((self._names.get(key, key), value) for key, value in body.items())
        return {key: value for key, value in named if key is not None}

    def learn(self, sent: Mapping[str, Any], refusal: str) -> bool:
        """Whether a refusal of ``sent`` says by what name a field is taken, or that it is not."""
        named = next((name for name in _OTHER_NAMES if re.search(rf"\b{name}\b", refusal)), None)
        if "max_tokens" in sent and (named or _is_unsupported("max_tokens", refusal)):
            self._names["max_tokens"] = named or _OTHER_NAMES[0]
        elif refused := next((key for key in _OPTIONAL if key in sent and _is_unsupported(key, refusal)), None):
            self._names[refused] = None
        else:
            return False
        return True


def refuses_temperature(refusal: str) -> bool:
    """Whether a refusal is about the temperature of 0 that scoring asks for."""
    return _is_unsupported("temperature", refusal)


def _is_unsupported(field: str, refusal: str) -> bool:
    return re.search(rf"""\b{field}\b\\?['"`]""", refusal) is not None and _UNSUPPORTED.search(refusal) is not None
