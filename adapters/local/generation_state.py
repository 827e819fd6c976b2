"""The state of one generation: its tokens so far, and whether it is done."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any, Literal

from mergefront.adapters.language_model import Generation, GenerationRequest
from mergefront.adapters.tokenization import Tokenization


class GenerationState:
    """The tokens generated for ``request``; ``done`` after an end token, a stop string or the last allowed token, and
    where what follows makes no difference to what is wanted."""

    def __init__(
        self, request: GenerationRequest, tokenizer: Any, tokenization: Tokenization, ends: Container[int]
    ) -> None:
        self.request = request
        self.done = request.max_new_tokens <= 0
        self._tokenizer = tokenizer
        self._tokenization = tokenization
        self._ends = ends
        self._tokens: list[int] = []
        self._ended = self._settled = False
        self._special_stops = tokenization.special_stops(request.stop)

    def copy(self) -> GenerationState:
        """The same state, which goes on by itself."""
        made = copy.copy(self)
        made._tokens = list(self._tokens)
        return made

    @property
    def tokens(self) -> Sequence[int]:
        """What is generated so far."""
        return self._tokens

    def append(self, token: int) -> None:
        """The next token."""
        self._tokens.append(token)
        stops = self.request.stop
        if token in self._ends:
            self._ended = self.done = True
        elif len(self._tokens) >= self.request.max_new_tokens:
            self.done = True
        elif stops and self._tokenization.may_end(token, stops):
            # A character has at most four tokens (one a byte); a few more settle how the first is decoded.
            tail = self._tokens[-4 * max(map(len, stops)) - 4 :]
            self.done = any(stop in self._text(tail) for stop in stops) or self._is_special_end(tail)
        if not self.done and self.request.wanted is not None:
            self._settled = self.done = not self.request.wanted.is_open(self._text(self._tokens))

    def generation(self) -> Generation:
        """The answer: the text up to the first stop string."""
        end = self._first_special_stop()
        text = self._text(self._tokens[:end])
        found = [at for stop in self.request.stop if (at := text.find(stop)) >= 0]
        has_stopped = bool(found) or self._ended or end is not None
        finish: Literal["stop", "length", "settled"] = "stop" if has_stopped else "length"
        finish = "settled" if self._settled else finish
        return Generation(text[: min(found)] if found else text, len(self._tokens), finish)

    def _text(self, tokens: Sequence[int], *, marked: bool = False) -> str:
        """The text of tokens; ``marked``: with those that are special to the tokenizer."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not marked))

    def _is_special_end(self, tokens: Sequence[int]) -> bool:
        if not self._special_stops:
            return False
        text = self._text(tokens, marked=True)
        return any(stop in text for stop in self._special_stops)

    def _first_special_stop(self) -> int | None:
        """How many tokens stand before the first stop string that has special tokens in it; None without one."""
        if not self._is_special_end(self._tokens):
            return None
        texts = [self._text(self._tokens[:end], marked=True) for end in range(len(self._tokens) + 1)]
        first = min(at for stop in self._special_stops if (at := texts[-1].find(stop)) >= 0)
        return max(end for end, text in enumerate(texts) if len(text) <= first)
