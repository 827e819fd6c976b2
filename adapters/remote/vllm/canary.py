"""A canary whose answers are known without computing them: a base that exchanges some tokens for others.

With the rows of these tokens exchanged in embeddings and head, a model says of the exchanged texts what it said of the
texts. Old embeddings, an old head and prompts that were read under other weights all show, where everything is answered
with 200; and the truth of a large model could not be computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Step = tuple[tuple[int, ...], int]
"""Tokens, and the one that follows."""
_LONG = 600
"""Tokens of the prompt that fills several blocks of a prefix cache."""


@dataclass(frozen=True)
class Exchange:
    """What is ``asked``, the same with other tokens (``exchanged``), and the ``pairs`` that are exchanged."""

    asked: list[Step]
    exchanged: list[Step]
    pairs: list[tuple[int, int]]


def exchange(texts: Sequence[tuple[int, ...]], vocabulary: int, longest: int) -> Exchange:
    """The last tokens of short texts and of a long one; each of their tokens is exchanged for one that is not among
    them, as far as the vocabulary has such."""
    everything = [token for tokens in texts for token in tokens]
    length = min(_LONG, longest - 1)
    long = tuple((everything * (length // len(everything) + 1))[:length])
    asked: list[Step] = [(tokens[:-1], tokens[-1]) for tokens in (*texts, long) if len(tokens) > 1]
    used = sorted(set(everything))
    free = [token for token in range(vocabulary // 2, vocabulary) if token not in set(used)]
    pairs = list(zip(used, free, strict=False))
    other = {one: two for pair in pairs for one, two in (pair, pair[::-1])}
    moved: list[Step] = [(tuple(other.get(one, one) for one in known), other.get(last, last)) for known, last in asked]
    return Exchange(asked, moved, pairs)
