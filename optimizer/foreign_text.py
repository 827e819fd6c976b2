"""Text that others wrote (servers, models, files, databases), read and shown without harm."""

from __future__ import annotations

import errno
import re
from pathlib import Path

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""``text`` with what commands a terminal, breaks lines unseen or turns the direction of reading written out.

    ESC becomes ``\u001b``, which JSON reads as the same sign. Line feeds and tabs stay.
    """
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# Each begins with fixed letters, so that a text of any kind is read in time that grows with its length alone.
_SECRETS = (
    (re.compile(r"(://[^:/@\s]*):[^@/\s]*@"), r"\1:***@"),
    (re.compile(r"(?i)(bearer\s+)[^\s\"',;]+"), r"\1***"),
    (re.compile(r"\b(sk|hf|ghp)[-_][A-Za-z0-9_-]{8,}"), r"\1-***"),
)


def without_secrets(text: str) -> str:
    """``text`` with passwords in URLs and what looks like a token blotted out."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def file_content(path: Path) -> bytes:
    """The bytes of a file that others may have put there.

    Raises ``OSError`` for what cannot be read, and for a device, a pipe or a socket, which is never opened: it can be
    read for ever.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket", str(path))
    return path.read_bytes()


LONGEST_NAME = 200
"""Characters of a name: every database has room for names that are put together of two."""
NAMES = f"a name has 1 to {LONGEST_NAME} characters, all of which can be seen"
"""What ``is_name`` asks for."""


def is_name(text: str) -> bool:
    """Whether people can read ``text`` as a name: not long, on one line, all characters seen, not spaces alone."""
    return len(text) <= LONGEST_NAME and bool(text.strip()) and visible(text) == text and not {"\n", "\t"} & set(text)


def one_line(text: str) -> str:
    """``text`` made visible, on one line: for a comment or a heading."""
    return " ".join(visible(text).split())
