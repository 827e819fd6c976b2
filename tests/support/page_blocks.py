"""Blocks of code of a documentation page. ``bash``, ``python``, ``yaml`` and ``json`` are run or read by a test, unless
a comment above them says ``<!-- not run: REASON -->``. ``text`` is output, or a drawing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of a page; ``not_run`` says why no test runs it."""

    language: str
    text: str
    not_run: str | None


def all_blocks(page: str) -> list[Block]:
    """The blocks of a page, which is named as a path of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(one["language"], one["text"], one["reason"]) for one in _BLOCK.finditer(text)]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of that language of a page that tests run."""
    return [one.text for one in all_blocks(page) if one.language == language and one.not_run is None]
