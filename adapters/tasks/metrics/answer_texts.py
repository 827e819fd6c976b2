"""What a generated text says: normalised for comparison, as words, as a program."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from unicodedata import category, normalize

ARTICLES = ("a", "an", "the")
_ARTICLES = re.compile(rf"\b({'|'.join(ARTICLES)})\b")
_FENCE = re.compile(r"```[a-zA-Z0-9_+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_PUNCTUATION = frozenset(string.punctuation)
_SILENT = ("P", "Cf", "Sk")
"""Categories of Unicode that compare as nothing: punctuation, marks of format, accents that stand by themselves."""


def composed(text: str) -> str:
    """The text without surrounding white space, an accent and its letter as one character (NFC)."""
    return normalize("NFC", text).strip()


def begun_and_ended(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string behind its first character that is no white space."""
    start = len(text) - len(text.lstrip())
    found = [at for one in stop if (at := text.find(one, start)) >= 0]
    return text[: min(found)] if found else text


def normalised(text: str) -> str:
    """Without case, forms of compatibility (NFKC), punctuation, English articles and superfluous white space (SQuAD's
    rules over all of Unicode); a text of nothing else is left as it is."""
    return " ".join(words(text)) or composed(text)


def words(text: str) -> list[str]:
    """The words of a text without English articles, each ``folded``."""
    return _ARTICLES.sub(" ", folded(text)).split()


def folded(text: str) -> str:
    """The text without case, forms of compatibility and punctuation."""
    bare = "".join(character for character in text if not _is_silent(character))
    bare = normalize("NFKC", normalize("NFKC", bare).casefold())
    return "".join(character for character in bare if not _is_silent(character))


def _is_silent(character: str) -> bool:
    return character in _PUNCTUATION or (not character.isascii() and category(character).startswith(_SILENT))


def word_f1(text: str, answer: str) -> float:
    """Harmonic mean of the precision and recall of the answer's words, both normalised; in [0, 1]."""
    said, right = normalised(text).split(), normalised(answer).split()
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2.0 * common / (len(said) + len(right))


def program(prompt: str, text: str) -> str:
    """The program that a model wrote: its first fenced block, or the prompt continued by the text."""
    fenced = _FENCE.search(text)
    return fenced.group(1) if fenced else prompt + text
