"""A secret taken out of what a server sent, whatever form the server gave it."""

from __future__ import annotations

import base64
import html
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter

BLOT = "***"
_ROUNDS = 3
"""Escapes of escapes, of escapes."""
_ESCAPE = re.compile(
    r"(?<!\\)\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))|%([0-9a-fA-F]{2})|(&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,8});)"
)
_BACKSLASHES = re.compile(r"\\+")
_BREAK = re.compile(r"(?<!\\)\\+[nrt]")
_BETWEEN = re.compile(r"[^A-Za-z0-9]+")
_FRAGMENT = 8
"""Letters and digits of a part of the secret that is taken out by itself."""
_SHORTEST = 4

_Step = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def without_escaped(text: str, secret: str) -> str:
    """``text`` without the secret, plain or with escapes of JSON, URLs and HTML. The rest stays as it is, so that an
    answer is still the answer."""
    steps = [*[(_ESCAPE, _unescaped)] * _ROUNDS, (_BACKSLASHES, _nothing)]
    return _blotted(text, steps, [_BACKSLASHES.sub("", secret)])


def without_traces(text: str, secret: str) -> str:
    """``text`` without the secret and its longer parts, also split by other signs, in either case, in base64 and in
    hexadecimal digits. For texts that are only shown: it may take out more than the secret."""
    breaks = [] if "\\" in secret else [(_BREAK, _nothing)]
    steps = [*breaks, *[(_ESCAPE, _unescaped)] * _ROUNDS, (_BETWEEN, _nothing)]
    folded = _folded(secret)
    found = {folded, _folded(secret.encode().hex())}
    for shift in range(3):
        # Whichever of three places it begins at, the digits in the middle are the secret's alone.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            digits = encode(b"\0" * shift + secret.encode() + b"\0" * (-(shift + len(secret)) % 3)).decode()
            found.add(_folded(digits[4 if shift else 0 : -4]))
    if len(folded) >= 2 * _FRAGMENT:
        found |= {folded[at : at + _FRAGMENT] for at in range(len(folded) - _FRAGMENT + 1)}
    traces = [trace for trace in found if len(trace) >= _SHORTEST]
    return _blotted(without_escaped(text, secret), steps, traces, str.lower)


def _folded(text: str) -> str:
    return _BETWEEN.sub("", text).lower()


def _nothing(_found: re.Match[str]) -> str:
    return ""


def _unescaped(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    return html.unescape(found[4]) if digits is None else chr(int(digits, 16))


def _blotted(text: str, steps: Iterable[_Step], traces: Iterable[str], folded: Callable[[str], str] = str) -> str:
    """``text`` with each place blotted out that reads as one of the traces after all steps."""
    read, backs = text, []
    for pattern, instead in steps:
        read, back = _replaced(read, pattern, instead)
        backs.append(back)
    read = folded(read)
    spans: list[tuple[int, int]] = []
    for trace in traces:
        at = read.find(trace)
        while at >= 0:
            spans.append((at, at + len(trace)))
            at = read.find(trace, at + 1)
    parts: list[str] = []
    end = 0
    for first, last in sorted(spans):
        # The first sign's own place and the last one's: what stood between signs belongs to neither side.
        begins, ends = first, last - 1
        for back in reversed(backs):
            begins, ends = back(begins)[0], back(ends)[1] - 1
        if begins > end or not parts:
            parts += [text[end:begins], BLOT]
        end = max(end, ends + 1)
    return "".join([*parts, text[end:]])


def _replaced(
    text: str, pattern: re.Pattern[str], instead: Callable[[re.Match[str]], str]
) -> tuple[str, Callable[[int], tuple[int, int]]]:
    """``text`` with each match replaced by one sign or none, and from where in it each sign of the result is: begin and
    end."""
    parts: list[str] = []
    made, last = 0, 0
    entries = [(0, 0, 1)]
    for found in pattern.finditer(text):
        parts.append(text[last : found.start()])
        made += len(parts[-1])
        sign = instead(found)
        if sign:
            parts.append(sign)
            entries.append((made, found.start(), len(found[0])))
            made += len(sign)
        last = found.end()
        entries.append((made, last, 1))
    parts.append(text[last:])

    def back(place: int) -> tuple[int, int]:
        at, was, width = entries[bisect_right(entries, place, key=itemgetter(0)) - 1]
        return was + place - at, was + place - at + width

    return "".join(parts), back
