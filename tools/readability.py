"""How easy the documentation is to read: ``python tools/readability.py [--long] [PAGE ...]``.

Prints the Flesch reading ease (textstat; 60 is plain English, 30 is hard) and the longest sentence of each page, of
its prose only: code blocks, tables, headings and comments are left out, a code span counts as the word "code". With
``--long`` it prints every sentence of more than 25 words, and ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 25
BEGINNING = r"[A-Z\"'(▲◆●✗0-9]|code|mergefront|mergekit|vLLM|llama|transformers|config"
"""What a sentence may begin with; some names are written small."""


def pages() -> list[Path]:
    """Every page that is written by hand."""
    texts = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
    found = [*(path for path in texts if path.exists()), *(ROOT / "examples").glob("*/README.md")]
    return sorted([*found, *(ROOT / "docs").rglob("*.md")])


def paragraphs(markdown: str) -> Iterator[str]:
    """The paragraphs and list items of a page as plain text."""
    markdown = re.sub(r"^---\n.*?\n---\n|<!--.*?-->|<[^>\n]+>", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"^ *(```|~~~).*?^ *\1", "\n", markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = re.sub(r"^ *(\||#|:::|!!!).*$|^    :.*$", "", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", markdown)
    markdown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    markdown = re.sub(r"``[^`]+``|`[^`]+`", "code", markdown)
    markdown = re.sub(r"[*_]{1,2}(\S(?:[^*_]*\S)?)[*_]{1,2}", r"\1", markdown)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", markdown):
        text = " ".join(re.sub(r"^\s*(?:[-*]|\d+\.|>) ", "", block).split())
        if re.search(r"[A-Za-z]{2}", text):
            yield text


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; full stops inside numbers, file names and abbreviations end none."""
    text = re.sub(r"\b(e\.g|i\.e|vs|cf|etc|al|Fig|Eq)\.", r"\1", paragraph)
    return [one for one in re.split(rf"(?<=[.!?])[)\"']*\s+(?={BEGINNING})", text) if one.strip()]


def words(sentence: str) -> int:
    """How many words a sentence has; numbers count, signs alone do not."""
    return len([one for one in sentence.split() if re.search(r"[A-Za-z0-9]", one)])


def ease(markdown: str) -> tuple[float, list[str]]:
    """Flesch reading ease of a page, and its sentences."""
    import textstat

    found = [one for paragraph in paragraphs(markdown) for one in sentences(paragraph)]
    plain = " ".join(re.sub(r"\.(?=\S)|[.!?:]+$", "", one) + "." for one in found)
    return (float(textstat.flesch_reading_ease(plain)) if found else 100.0), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help=f"print sentences of more than {LONGEST} words")
    parser.add_argument("pages", nargs="*", type=Path)
    arguments = parser.parse_args()
    everything, too_long = [], 0
    for path in arguments.pages or pages():
        text = path.read_text(encoding="utf-8")
        score, found = ease(text)
        everything.append(text)
        longest = max(map(words, found), default=0)
        over = [one for one in found if words(one) > LONGEST]
        too_long += len(over)
        name = path.resolve().relative_to(ROOT)
        print(f"{score:6.1f}  {longest:3d} words  {len(over):3d} of {len(found):3d} sentences too long  {name}")
        if arguments.long:
            for one in over:
                print(f"        {words(one)}: {one}")
    score, found = ease("\n\n".join(everything))
    print(f"{score:6.1f}  all pages, {sum(map(words, found)) / max(len(found), 1):.1f} words a sentence")
    return int(arguments.long and too_long > 0)


if __name__ == "__main__":
    sys.exit(main())
