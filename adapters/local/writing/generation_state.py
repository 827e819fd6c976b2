"""The state of one generation: its tokens so far, and whether it is done."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any, Literal

import numpy as np
import torch

from mergefront.adapters.language_model import Generation, GenerationRequest, Margins
from mergefront.adapters.thoughts import answer_of
from mergefront.adapters.tokenization import Tokenization


def drawn_token(logits: torch.Tensor, temperature: float, top_p: float, at: float) -> int:
    """The token at the place ``at`` (in [0, 1)) of the distribution that ``logits`` (``vocabulary``) have at a
    temperature, cut to the likeliest tokens that have the probability ``top_p`` together."""
    chances = (logits.double() / temperature).softmax(0)
    order = None
    if top_p < 1:
        chances, order = chances.sort(descending=True, stable=True)
        chances = chances * (chances.cumsum(0) - chances < top_p)
    totals = chances.cumsum(0)
    place = int(torch.searchsorted(totals, (at * totals[-1]).unsqueeze(0), right=True).clamp(max=len(chances) - 1))
    return place if order is None else int(order[place])


class GenerationState:
    """The tokens generated for ``request``; ``done`` after an end token, a stop string or the last allowed token, and
    where what follows makes no difference to what is wanted.

    ``is_open``: the prompt ends inside the model's thoughts. ``margins`` belong to the answer.
    """

    def __init__(
        self,
        request: GenerationRequest,
        tokenizer: Any,
        tokenization: Tokenization,
        ends: Container[int],
        is_open: bool = False,
    ) -> None:
        self.request = request
        self.done = request.max_new_tokens <= 0
        self.margins: Margins | None = None
        self._tokenizer = tokenizer
        self._tokenization = tokenization
        self._ends = ends
        self._tokens: list[int] = []
        self._ended = self._settled = False
        self._special_stops = tokenization.special_stops(request.stop)
        self._random = np.random.default_rng(request.seed) if request.temperature > 0 else None
        self._answer_starts = 0 if request.thinking is None else None
        self._is_open = is_open

    @property
    def tokens(self) -> Sequence[int]:
        """What is generated so far."""
        return self._tokens

    def append(self, token: int) -> None:
        """The next token."""
        self._tokens.append(token)
        stops, start = self.request.stop, self._answer_starts
        if token in self._ends:
            self._ended = self.done = True
        elif start is None:
            self._go_on_thinking(token)
        elif len(self._tokens) - start >= self.request.max_new_tokens:
            self.done = True
        elif stops and self._tokenization.may_end(token, stops):
            # A character has at most four tokens (one a byte); a few more settle how the first is decoded.
            tail = self._tokens[max(start, len(self._tokens) - 4 * max(map(len, stops)) - 4) :]
            if start and not self._text(self._tokens[start:]).strip():
                return  # white space behind thoughts is no part of the answer
            self.done = any(stop in self._text(tail) for stop in stops) or self._is_special_end(tail)
        if not self.done and self.request.wanted is not None:
            self._settled = self.done = not self.request.wanted.is_open(self._text(self._tokens))

    def choose(self, logits: torch.Tensor) -> int:
        """The next token by its logits (``vocabulary``): the likeliest, or one that is drawn.

        A row draws one number a token from a generator of its own, so that others in its batch change nothing.
        """
        if self._random is None:
            return int(logits.argmax())
        return drawn_token(logits, self.request.temperature, self.request.top_p, self._random.random())

    def _go_on_thinking(self, token: int) -> None:
        thinking = self.request.thinking
        assert thinking is not None
        if self._tokenization.may_end(token, (thinking.end,)):
            tail = self._tokens[-4 * len(thinking.end) - 4 :]
            if thinking.end in self._text(tail, marked=True):
                self._answer_starts = len(self._tokens)
                return
        self.done = len(self._tokens) >= thinking.most

    def generation(self) -> Generation:
        """The answer: the text behind the thoughts, up to the first stop string."""
        finish: Literal["stop", "length", "settled"]
        thinking, start = self.request.thinking, self._answer_starts
        if thinking is not None:
            # The marks of thoughts are special tokens of some models, which decoding leaves out.
            thoughts = self._text(self._tokens[:start], marked=True)
            end = None if start is None else self._first_special_stop(start)
            text = thoughts + ("" if start is None else self._text(self._tokens[start:end]))
            if start is None and self._ended and not thinking.is_open(thoughts):
                text = self._text(self._tokens)
            finish = "stop" if self._ended or end is not None else "length"
            said = Generation(text, len(self._tokens), finish)
            return answer_of(said, self.request, is_open=self._is_open)
        end = self._first_special_stop(0)
        text = self._text(self._tokens[:end])
        found = [at for stop in self.request.stop if (at := text.find(stop)) >= 0]
        has_stopped = bool(found) or self._ended or end is not None
        finish = "stop" if has_stopped else "length"
        finish = "settled" if self._settled else finish
        return Generation(text[: min(found)] if found else text, len(self._tokens), finish, margins=self.margins)

    def _text(self, tokens: Sequence[int], *, marked: bool = False) -> str:
        """The text of tokens; ``marked``: with those that are special to the tokenizer."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not marked))

    def _is_special_end(self, tokens: Sequence[int]) -> bool:
        if not self._special_stops:
            return False
        text = self._text(tokens, marked=True)
        return any(stop in text for stop in self._special_stops)

    def _first_special_stop(self, start: int) -> int | None:
        """How many tokens stand before the first stop string behind ``start`` that has special tokens in it; None
        without one."""
        tokens = self._tokens[start:]
        if not self._is_special_end(tokens):
            return None
        texts = [self._text(tokens[:end], marked=True) for end in range(len(tokens) + 1)]
        first = min(at for stop in self._special_stops if (at := texts[-1].find(stop)) >= 0)
        return start + max(end for end, text in enumerate(texts) if len(text) <= first)
