"""The state of one generation: its tokens so far, and whether it is done."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

from mergefront.adapters.language_model import Generation, GenerationRequest
from mergefront.adapters.tokenization import Tokenization


class GenerationState:
    """The tokens generated for ``request``; ``done`` after an end token, a stop string or the last allowed token."""

    def __init__(
        self, request: GenerationRequest, tokenizer: Any, tokenization: Tokenization, ends: Container[int]
    ) -> None:
        self.request = request
        self.done = request.max_new_tokens <= 0
        self._tokenizer = tokenizer
        self._tokenization = tokenization
        self._ends = ends
        self._tokens: list[int] = []
        self._ended = False

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
            text = self._tokenizer.decode(tail, skip_special_tokens=True)
            self.done = any(stop in text for stop in stops)

    def generation(self) -> Generation:
        """The answer: the text up to the first stop string."""
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        found = [at for stop in self.request.stop if (at := text.find(stop)) >= 0]
        finish: Literal["stop", "length"] = "stop" if found or self._ended else "length"
        return Generation(text[: min(found)] if found else text, len(self._tokens), finish)
