"""The beginning that all rows of a call have in common (instructions, few-shot examples), read once.

Its keys and values are copied for every batch that goes on from it; rows then hold only what is their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

Tokens = tuple[int, ...]

LEAST_SAVED = 128
"""Tokens that need not be read again from which a shared beginning pays for a pass of its own."""


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
    """Tokens that were read, and the model's cache of them (one row). An empty one stands for no shared beginning."""

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
