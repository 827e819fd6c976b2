"""How an echoed text is read: its tokens, their places and their log-probabilities.

The pieces that an endpoint lists must spell the text, and their lengths say where each token lies. What endpoints say
of the places (``text_offset``) is not used: some count letters of tokens that are not in the text, some count bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.adapters.language_model import LogLikelihood
from mergefront.adapters.remote.http.json_answers import MalformedAnswerError, field, logprob
from mergefront.optimizer.errors import EvaluationError

_MOST_BEGIN_TOKENS = 2
_BEGIN_TOKEN = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_BYTES = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)|<0x([0-9A-Fa-f]{2})>")
"""How tokens that are a part of a character are spelled."""


class NoLogProbabilitiesError(EvaluationError):
    """The endpoint gives no log-probabilities of a given text."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}; use a metric that generates (exact_match), or another server", kind="no log-probabilities"
        )


@dataclass(frozen=True)
class EchoedToken:
    """A token of an echoed text: where the characters end that it is a part of (bytes of the text), its
    log-probability (None for the first of all tokens), and whether it is the likeliest one (None where the endpoint
    does not say)."""

    end: int
    logprob: float | None
    is_greedy: bool | None


def read_echo(answer: Any, text: str) -> list[EchoedToken]:
    """The tokens of ``text`` in an answer that echoes it.

    Raises ``NoLogProbabilitiesError`` where they are not there or do not spell the text.
    """
    choices = field(answer, "choices", kind=list)
    listed = choices[0].get("logprobs") if choices and isinstance(choices[0], dict) else None
    pieces = listed.get("tokens") if isinstance(listed, dict) else None
    values = listed.get("token_logprobs") if isinstance(listed, dict) else None
    if not isinstance(listed, dict) or not isinstance(pieces, list) or not isinstance(values, list):
        raise NoLogProbabilitiesError(
            "the endpoint gives no log-probabilities of a given text (it ignores echo or logprobs)"
        )
    if len(values) != len(pieces) or not all(isinstance(piece, str) for piece in pieces):
        raise MalformedAnswerError("has tokens and token_logprobs that do not fit together")
    before, ends = _places(pieces, text.encode())
    top = listed.get("top_logprobs")
    tokens = []
    for place, end in enumerate(ends, before):
        # Nothing comes before the first of all tokens, whatever number it is given.
        value = None if place == 0 or values[place] is None else logprob(values, place)
        best = top[place] if isinstance(top, list) and place < len(top) else None
        tokens.append(EchoedToken(end, value, _is_best(value, best)))
    return tokens


def score_continuation(tokens: Sequence[EchoedToken], context: str) -> LogLikelihood:
    """The log-likelihood of what follows ``context``; a token across the seam counts to the continuation.

    Raises ``EvaluationError`` where a token has no log-probability.
    """
    bare = len(context.rstrip().encode())  # spaces at the seam belong to the continuation, as for local models
    scored = [token for token in tokens if token.end > bare]
    if scored[0].logprob is None:
        raise EvaluationError(
            "the endpoint gives no log-probability of the first token of a text; give every item a prompt",
            kind="no log-probability",
        )
    values = [token.logprob for token in scored if token.logprob is not None]
    if len(values) < len(scored):
        raise EvaluationError("the endpoint left log-probabilities out", kind="no log-probability")
    return LogLikelihood(math.fsum(values), len(values), are_greedy(token.is_greedy for token in scored))


def are_greedy(each: Iterable[bool | None]) -> bool | None:
    """Whether all are greedy; None where one of them may be or not, and no other is not."""
    flags = set(each)
    return False if False in flags else None if None in flags else True


def _places(pieces: Sequence[str], text: bytes) -> tuple[int, list[int]]:
    """How many begin tokens come before the text, and where the characters end that each of its tokens is a part of.

    Tokens after the text are left out. Raises ``NoLogProbabilitiesError`` where no way of reading spells the text.
    """
    spelled = [_spelled(piece) for piece in pieces]
    for before in range(_MOST_BEGIN_TOKENS + 1):
        if not all(_BEGIN_TOKEN.fullmatch(piece) for piece in pieces[:before]):
            break
        for prefix in (b"", b" "):  # some tokenizers read a text with a space before it
            ends = _ends(spelled[before:], prefix + text)
            if ends is not None:
                return before, [end - len(prefix) for end in ends]
    raise NoLogProbabilitiesError(
        "the tokens that the endpoint lists do not spell the text that was sent. So they cannot be matched to it: "
        "it does not echo, changes the text, or shows its tokens otherwise"
    )


def _ends(spelled: Sequence[bytes], text: bytes) -> list[int] | None:
    """Where the characters end that each token is a part of, up to the end of ``text``; None where it is not spelled.

    Tokens that spell nothing are parts of a character that a later one spells whole.
    """
    ends: list[int] = []
    end, silent = 0, 0
    for piece in spelled:
        silent += 1
        end += len(piece)
        if piece:
            ends += [end] * silent
            silent = 0
        if end >= len(text):
            return ends if end == len(text) and b"".join(spelled[: len(ends)]) == text else None
    return None


def _spelled(piece: str) -> bytes:
    found = _BYTES.fullmatch(piece)
    if found is None:
        return piece.encode("utf-8", "surrogatepass")
    return bytes.fromhex((found[1] or found[2]).replace("\\x", ""))


def _is_best(value: float | None, best: Any) -> bool | None:
    others = [other for other in best.values() if isinstance(other, (int, float))] if isinstance(best, dict) else []
    return value >= max(others) - 1e-9 if others and value is not None else None
