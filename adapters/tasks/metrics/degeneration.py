"""Answers that no one can use whatever was asked: empty ones, those that never end, those that go round in a loop.

A loop is a piece of text that follows itself without a gap, often enough for its length. Characters are compared, so
that scripts without spaces need no words; case, white space and the numbers of list entries do not count.

    is_looping("The answer is 5. The answer is 5. The answer is 5. The answer is 5.")    # True
    is_looping("我不知道答案。我不知道答案。我不知道答案。我不知道答案。")                 # True
    is_looping("| yes | no | yes |\n| yes | yes | no |")                                  # False
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from unicodedata import category, east_asian_width, normalize

import numpy as np

from mergefront.adapters.language_model import Generation, LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.generation_metrics import generations
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, Scored

REPEATS_BY_WIDTH = ((60, 3), (16, 4), (0, 8))
"""How often in a row a piece stands in a loop, by its width in columns: a sentence thrice, a phrase four times."""
NARROWEST_LOOP = 32
"""Columns of the shortest loop: "ha ha ha ha" is laughter."""
REPEATS_WITHOUT_LETTERS = 16
"""The same of digits and marks, which tables, rules and matrices repeat; such a loop is half of the answer at least."""
_ANCHOR = 8
"""Characters by which places of a text that say the same are found."""
_ENTRY = re.compile(r"^[ \t]*(?:\(?\d{1,3}[.):]|[-*+•])[ \t]+", re.MULTILINE)
_WIDE = 3
"""Columns that an ideograph, a kana or a syllable of Hangul counts: what it says takes about three letters."""


def degenerate(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the answer is missing or empty, is cut off by ``max_new_tokens``, or has a loop in it."""
    return [float(is_degenerate(said)) for said in generations(model, items, options)], None


def is_degenerate(said: Generation) -> bool:
    """Whether a model's answer is missing or empty, never ended, or has a loop in it."""
    return bool(said.unanswered) or said.finish == "length" or not said.text.strip() or is_looping(said.text)


def is_looping(text: str) -> bool:
    """Whether a piece of the text follows itself as often as only a loop does."""
    text = " ".join(_ENTRY.sub("", normalize("NFKC", text)).casefold().split())
    if len(text) <= _ANCHOR:
        return False
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    columns = np.concatenate([[0], np.cumsum([_WIDE if east_asian_width(one) in "WF" else 1 for one in text])])
    return any(_has_loop(text, codes, columns, period) for period in _periods(text))


def _periods(text: str) -> list[int]:
    """Distances at which the text says the same more than once, the most frequent first."""
    last: dict[str, int] = {}
    found: Counter[int] = Counter()
    for place in range(len(text) - _ANCHOR + 1):
        anchor = text[place : place + _ANCHOR]
        if anchor in last:
            found[place - last[anchor]] += 1
        last[anchor] = place
    return [period for period, count in found.most_common() if count > 1]


def _has_loop(
    text: str, codes: np.typing.NDArray[np.uint32], columns: np.typing.NDArray[np.int64], period: int
) -> bool:
    """Whether somewhere pieces of ``period`` characters repeat without a gap as often as a loop's do.

    ``codes`` are the text's characters (``n``), ``columns`` the width of all before each place (``n + 1``).
    """
    same = np.concatenate([[False], codes[period:] == codes[:-period], [False]])
    starts, ends = np.flatnonzero(np.diff(same.astype(np.int8))).reshape(-1, 2).T
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        end += period
        times, width = (end - start) // period, int(columns[end] - columns[start])
        piece = text[start : start + period]
        if any(category(one)[0] == "L" for one in piece):
            wide = int(columns[start + period] - columns[start])
            needed, least = next(repeats for width, repeats in REPEATS_BY_WIDTH if wide >= width), NARROWEST_LOOP
        else:
            needed, least = REPEATS_WITHOUT_LETTERS, max(NARROWEST_LOOP, int(columns[-1]) // 2)
        if times >= needed and width >= least:
            return True
    return False
