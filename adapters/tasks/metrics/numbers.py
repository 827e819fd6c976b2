"""Numbers as people and models write them, by one grammar for accepted answers and generated texts.

| written | read as |
| --- | --- |
| ``1234``, ``1,234``, ``1 234``, ``1'234``, ``12,34,567``, ``4{,}200`` | thousands, grouped |
| ``3.5``, ``3,5``, ``.5``, ``1,234.5``, ``1.234,5`` | decimals |
| ``1/2``, ``3 1/2``, ``½``, ``\\frac{1}{2}`` | fractions |
| ``3e4``, ``3 × 10^4``, ``10^{-4}``, ``5 million`` | powers of ten |
| ``-5``, ``−5``, ``–5`` after no digit or letter | negative numbers |
| ``12:30``, ``1.2.3``, ``2024-05-06``, ``1/2/2024``, ``2^10``, ``3π``, ``√2``, ``5 ± 2`` | no number |

``1,234`` and ``1.234`` are read as in English, unless the accepted answer has a decimal comma. A unit, a currency or a
percent sign beside a number changes nothing.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from unicodedata import normalize

from mergefront.adapters.tasks.items import Item

_GROUPED = r"[1-9]\d{0,2}(?: \d{3})+(?!\d)(?:[.,]\d+)?"
_RUN = rf"(?:{_GROUPED}|\d+(?:[.,'_]\d+)*|(?<![\d.,])\.\d+)"
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    rf"(?P<sign>[-+])?(?:[$€£¥] ?)?(?:(?P<mixed>\d{{1,9}}) (?=\d{{1,9}}/\d))?(?<![\d^_])(?<![\^_][-{{])(?P<run>{_RUN})"
    rf"(?:(?P<e>[eE][-+]?\d+)|(?: ?[×x*] ?10\^(?P<power>[-+]?\d+))|\^(?P<raised>[-+]?\d+))?"
    rf"(?:/(?P<under>{_RUN}))?"
    rf"(?: (?P<scale>(?i:{'|'.join(_SCALES)}))\b)?"
)
_NOT_SIGNED = re.compile(r"[\w)\]}%°]$")
"""What a sign stands behind where it joins two numbers, or words."""
_UNREAD_BEFORE = re.compile(r"(?:[√±/][ {(]?|\d:|\d-\d{1,9}-)-?$")
_UNREAD_AFTER = re.compile(r" ?(?:[π√±]|[)\]}]*\^)")
_OPERATOR = re.compile(r"(?:\d ?(?:[-+*×÷/]|\b(?:to|or|and)\b) ?|\d ?)$")
"""What makes of the last number of an answer one of two."""
_MOST_DIGITS = 100
_MOST_POWER = 400

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"))
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LATEX: Sequence[tuple[re.Pattern[str], str]] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!|\{\\!\}|\\(?:left|right)\b", ""),
        (r"\{([.,])\}", r"\1"),
        (r"\{?\\[,;: ]\}?|~", " "),
        (r"\\([$%])", r"\1"),
        (r"\\(?:times|cdot)\b", "×"),
        (r"\\pm\b", "±"),
        (r"\\pi\b", "π"),
        (r"\\sqrt\b", "√"),
        (r"(?<=\d)\\[dtc]?frac ?\{([^{}]{1,99})\} ?\{([^{}]{1,99})\}", r" \1/\2"),
        (r"\\[dtc]?frac ?\{([^{}]{1,99})\} ?\{([^{}]{1,99})\}", r"\1/\2"),
        (r"(?<=\d)\\[dtc]?frac(\d)(\d)", r" \1/\2"),
        (r"\\[dtc]?frac(\d)(\d)", r"\1/\2"),
        (r"\^\{([-+]?\d{1,9})\}", r"^\1"),
    )
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_WIDE = re.compile("[\uff0b-\uff19]")
_SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f]")


@dataclass(frozen=True)
class Reading:
    """The last number of a text: its ``value``, None where there is none or it is not read as one.

    ``doubt`` says why an accepted answer cannot be this; ``has_decimal_comma``, that it is written with one;
    ``is_either``, that another country would read another number.
    """

    value: Fraction | None
    doubt: str = ""
    has_decimal_comma: bool = False
    is_either: bool = False


def read_number(text: str, decimal_comma: bool = False) -> Reading:
    """The last number of a text; chains of thought end with their answer.

    ``decimal_comma``: one comma or point before three digits is read as where decimals have commas.
    """
    plain = _plain(text)
    found = deque(_NUMBER.finditer(plain), maxlen=1)
    if not found:
        return Reading(None, "has no number")
    last = found[0]
    sign, start = last["sign"] or "", last.start()
    if sign and _NOT_SIGNED.search(plain[max(0, start - 1) : start]):
        sign, start = "", start + 1
    before, after = plain[max(0, start - 40) : start], plain[last.end() : last.end() + 20]
    value = _value(last, decimal_comma)
    if value is None or _UNREAD_BEFORE.search(before) or _UNREAD_AFTER.match(after):
        return Reading(None, f"is not read as a number at {last[0].strip()!r}")
    run = last["run"]
    is_either = _of_run(run, True) != _of_run(run, False)
    has_comma = not is_either and run.count(",") == 1 and run.index(",") > run.rfind(".")
    doubt = "may be a range, a sum or a difference" if _OPERATOR.search(before) else ""
    return Reading(-value if sign == "-" else value, doubt, has_comma, is_either)


def is_a_number(text: str) -> bool:
    """Whether a text is one number and nothing else but a currency, a percent sign, or a solution before ``####``."""
    plain = _plain(text.rpartition("####")[2])
    found = list(_NUMBER.finditer(plain))
    return len(found) == 1 and not any(map(str.isalpha, plain[: found[0].start()] + plain[found[0].end() :]))


def number_faults(items: Sequence[Item]) -> list[str | None]:
    """Why an item's accepted answers cannot be compared with numbers, for each of ``items``; None where they can."""
    readings = [[read_number(answer) for answer in item.answers] for item in items]
    has_commas = any(reading.has_decimal_comma for several in readings for reading in several)
    return [_fault(item, several, has_commas) for item, several in zip(items, readings, strict=True)]


def _fault(item: Item, readings: Iterable[Reading], has_commas: bool) -> str | None:
    for answer, reading in zip(item.answers, readings, strict=True):
        if reading.doubt:
            return f"the answer {answer!r:.60} {reading.doubt}; write one number"
        if reading.is_either and has_commas:
            return (
                f"the answer {answer!r:.60} is one number with a decimal comma, which other answers have, and another "
                "one without; write it without groups, or with two decimals"
            )
    return None


def same_number(text: str, answers: Sequence[str], tolerance: float) -> bool:
    """Whether the last number of a text is that of an accepted answer, up to a part ``tolerance`` of it."""
    right = [read_number(answer) for answer in answers]
    said = read_number(text, any(reading.has_decimal_comma for reading in right)).value
    if said is None:
        return False
    values = [reading.value for reading in right if reading.value is not None]
    return any(abs(said - value) <= abs(value) * Fraction(str(tolerance)) for value in values)


def _plain(text: str) -> str:
    """A text with one way to write signs, spaces, powers and fractions, LaTeX's included."""
    text = _VULGAR.sub(lambda found: _apart(found, normalize("NFKC", found[0]).replace("\u2044", "/")), text)
    text = _RAISED.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
    text = _WIDE.sub(lambda found: normalize("NFKC", found[0]), text)
    text = _SPACES.sub(" ", text.translate(_DASHES)).replace("’", "'").replace("\u2044", "/")
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def _apart(found: re.Match[str], fraction: str) -> str:
    """A fraction, one space behind a digit (``3½``)."""
    return f" {fraction}" if found.string[max(0, found.start() - 1) : found.start()].isdigit() else fraction


def _value(found: re.Match[str], decimal_comma: bool) -> Fraction | None:
    value = _of_run(found["run"], decimal_comma)
    powers = [found["e"] and found["e"][1:], found["power"], found["raised"]]
    power = next((int(text) for text in powers if text and len(text) < 6), 0 if not any(powers) else None)
    if value is None or power is None or abs(power) > _MOST_POWER or (found["raised"] and value != 10):
        return None
    scale = _power_of_ten(power)
    value = scale if found["raised"] else value * scale
    if found["under"]:
        under = _of_run(found["under"], decimal_comma)
        if not under:
            return None
        value /= under
    value += int(found["mixed"] or 0)
    return value * _power_of_ten(_SCALES.get((found["scale"] or "").lower(), 0))


def _power_of_ten(power: int) -> Fraction:
    return Fraction(10**power) if power >= 0 else Fraction(1, 10**-power)


def _of_run(run: str, decimal_comma: bool) -> Fraction | None:
    """The number of digits with points, commas and group marks between them; None where they are none."""
    if len(run) > _MOST_DIGITS:
        return None
    if " " in run:
        return Fraction(run.replace(" ", "").replace(",", "."))
    parts = re.split(r"[.,'_]", run)
    marks = [mark for mark in run if mark in ".,'_"]
    if not marks:
        return Fraction(int(run))
    group = marks[0]
    if len(set(marks)) == 1 and (len(marks) > 1 or group in "'_"):
        is_grouped = _are_groups(parts) or (group == "," and _are_indian_groups(parts))
        return Fraction(int("".join(parts))) if is_grouped else None
    if len(marks) == 1:
        if _are_groups(parts) and (group == ".") == decimal_comma:
            return Fraction(int("".join(parts)))
        return Fraction(f"{parts[0] or 0}.{parts[1]}")
    *groups, decimals = parts
    is_grouped = _are_groups(groups) or (group == "," and _are_indian_groups(groups))
    if marks.count(group) != len(marks) - 1 or marks[-1] not in ".," or not is_grouped:
        return None
    return Fraction(f"{''.join(groups)}.{decimals}")


def _are_groups(parts: Sequence[str]) -> bool:
    head, *rest = parts
    return bool(rest) and 1 <= len(head) <= 3 and head[0] != "0" and all(len(part) == 3 for part in rest)


def _are_indian_groups(parts: Sequence[str]) -> bool:
    """Groups of two digits, the last one of three: 12,34,567."""
    head, *middle, tail = parts
    return bool(middle) and 1 <= len(head) <= 2 and all(len(part) == 2 for part in middle) and len(tail) == 3
