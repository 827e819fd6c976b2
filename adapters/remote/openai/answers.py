"""How the answers of OpenAI-compatible endpoints are read: a text that is there is taken, and a missing one is an
outcome of its item.

Providers end answers with reasons of their own and give no text for several: a content filter, a refusal, tokens that
went into reasoning, an empty list of choices. None of that is a fault of the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mergefront.adapters.language_model import Generation
from mergefront.adapters.remote.http.json_answers import MalformedAnswerError, field

_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "max_length", "model_length"})
_REASONING = ("reasoning_content", "reasoning")
"""Where servers put thoughts that they take out of a text."""
_TEXT_PARTS = ("text", "output_text")
_FILTERS = ("filter", "safety", "prohibited", "guardrail", "recitation", "sensitive", "blocklist", "refus", "spii")
"""Parts of the reasons with which providers withhold a text."""
USED_UP = "tokens used up"
_OUTCOMES = (
    (
        "content filter",
        r"content.?filter|content.?policy|content management policy|responsible.?ai|data_inspection|prohibited|"
        r"safety|guardrail|requires moderation|(?:input|prompt|content|request) was flagged|invalid_prompt",
    ),
    (
        "prompt too long",
        r"context.?length|context.?size|max_model_len|string_above_max_length|(?:prompt|input) is too long|"
        r"too many (?:input )?tokens|inputs` (?:must have less|tokens \+)",
    ),
    (USED_UP, r"could not finish the message"),
)
"""What refusals of one prompt say, by the outcome that they are."""


def outcome(refusal: str) -> dict[str, str] | None:
    """An answer in the place of a refusal that is about the prompt alone; None for other refusals."""
    for words, pattern in _OUTCOMES:
        if re.search(pattern, refusal, re.I):
            return {"unanswered": words}
    return None


def read_generation(answer: Any, stop: Sequence[str], tokens: int | None) -> Generation:
    """The text of an answer up to the first of the stop strings, or why it has none; ``tokens`` were generated.

    Raises ``MalformedAnswerError`` for what is no answer to a request for text.
    """
    if isinstance(answer, Mapping) and "unanswered" in answer:
        return Generation("", 0, "stop", unanswered=field(answer, "unanswered", kind=str))
    choices = field(answer, "choices")
    if not choices:
        return Generation("", tokens, "stop", unanswered="no choices")
    choice = field(choices, 0, kind=dict)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        message = {"content": field(choice, "text") if "text" in choice else None}
        if "message" not in choice and "text" not in choice:
            raise MalformedAnswerError("has neither choices.0.message nor choices.0.text")
    ended = choice.get("finish_reason")
    reason = str((ended.get("type") if isinstance(ended, Mapping) else ended) or "").casefold()
    text, is_cut_off = _text(message.get("content")), reason in _CUT_OFF
    why = "" if text else _unanswered(message, reason, is_cut_off and message is choice.get("message"))
    cut, stopped = _cut(text or "", stop)
    finish: Literal["stop", "length"] = "length" if is_cut_off and not stopped else "stop"
    is_parted = any(message.get(key) for key in _REASONING)
    return Generation("" if why else cut, tokens, finish, unanswered=why, is_parted=is_parted)


def written(answer: Any) -> str:
    """All that a model wrote as far as the answer shows it, its reasoning too: what its tokens are counted from."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    message = choice["message"] if isinstance(choice.get("message"), Mapping) else choice
    parts = [message.get(key) for key in (*_REASONING, "refusal")]
    content = _text(message.get("content", message.get("text"))) or ""
    return "".join([*(_text(part) or "" for part in parts if isinstance(part, str)), content])


def _text(content: Any) -> str | None:
    """A message's content: a text, or a list of parts of which the texts count; None where there is none.

    Halves of characters, with which some servers end a text that was cut off, are replaced: nothing can encode them.
    """
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS]
        content = "".join(part for part in parts if isinstance(part, str)) if parts or not content else None
    if content is not None and not isinstance(content, str):
        raise MalformedAnswerError("has a content of another type than expected")
    return content and content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _unanswered(message: Mapping[str, Any], reason: str, is_used_up: bool) -> str:
    """Why a message has no text; nothing for an empty text with which a model ended by itself."""
    if message.get("refusal"):
        return "refusal"
    if any(word in reason for word in _FILTERS):
        return "content filter"
    if is_used_up:
        return USED_UP
    if message.get("content") is not None:
        return ""
    return f"no text (finish_reason {reason})" if reason else "no text"


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    found = [place for one in stop if (place := text.find(one)) >= 0]
    return (text[: min(found)], True) if found else (text, False)
