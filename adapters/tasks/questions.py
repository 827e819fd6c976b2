"""What an item puts to a model: the prompt, and the texts that follow it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """``answers`` are the accepted ones, or the choices, as they follow ``prompt`` (the seam's white space included).

    A model is asked how likely they are or, where ``new_tokens`` is given, to write so many tokens at most, up to one
    of the ``stop`` strings.
    """

    prompt: str
    answers: tuple[str, ...]
    new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    image: str = ""


def following(prompt: str, answer: str, delimiter: str | None) -> str:
    """``answer`` as it follows ``prompt``: after the delimiter or, where that is None, after one space, unless the
    prompt is empty or either side has white space at the seam already."""
    if not prompt:
        return answer
    if delimiter is None:
        delimiter = "" if prompt[-1].isspace() or answer[:1].isspace() else " "
    return delimiter + answer
