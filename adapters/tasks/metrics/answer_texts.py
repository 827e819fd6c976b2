"""What a generated text says: normalised for comparison, as words, as a number, as a program."""

from __future__ import annotations

import re
import string
from collections import Counter
from decimal import Decimal, InvalidOperation

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+−]?\.\d+")
_FENCE = re.compile(r"```[a-zA-Z0-9_+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def normalised(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous white space (as SQuAD compares answers)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(text: str, answer: str) -> float:
    """Harmonic mean of the precision and recall of the answer's words, both normalised; in [0, 1]."""
    said, right = normalised(text).split(), normalised(answer).split()
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2.0 * common / (len(said) + len(right))


def last_number(text: str) -> Decimal | None:
    """The last number in a text (``1,234.5``, ``-3e4``), or None; chains of thought end with their answer."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None


def program(prompt: str, text: str) -> str:
    """The program that a model wrote: its first fenced block, or the prompt continued by the text."""
    fenced = _FENCE.search(text)
    return fenced.group(1) if fenced else prompt + text
