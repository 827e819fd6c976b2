"""The prefix that all rows of a call share (instructions, few-shot examples), computed once.

Its keys and values are copied for every batch; rows then hold only the tokens after the prefix.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mergefront.adapters.language_model import Tokens

LEAST_SAVED = 128
"""Saved tokens from which a shared prefix pays for a forward pass of its own (chosen by hand)."""


def common_length(rows: Sequence[Tokens], most: int) -> int:
    """How many tokens all ``rows`` begin with, at most ``most``; 0 where sharing them would save too little."""
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)
    length = 0
    for one, other in zip(first[:most], last[:most], strict=False):
        if one != other:
            break
        length += 1
    return length if length * (len(rows) - 1) >= LEAST_SAVED else 0


class Prefix:
    """Tokens and the model's cache of them (one row); empty where rows share no prefix."""

    def __init__(self, tokens: Tokens = (), cache: Any = None) -> None:
        self.tokens = tokens
        self._cache = cache

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, count: int) -> Any:
        """A cache of ``count`` equal rows that may be continued; None for an empty prefix."""
        if self._cache is None:
            return None
        made = copy.deepcopy(self._cache)
        made.batch_repeat_interleave(count)
        return made
