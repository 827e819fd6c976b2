"""Blocks of code of a documentation page. A block without a language is shown and not run: it needs several machines,
a GPU, Docker, or names of the reader's own."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of that language of a page, which is named as a path of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
