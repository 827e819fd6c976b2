"""What an item puts to a model: the prompt, and the texts that follow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mergefront.adapters.language_model import Chat, Thinking
from mergefront.adapters.tasks.items import Item


@dataclass(frozen=True)
class Question:
    """``answers`` are the accepted ones, or the choices, as they follow ``prompt`` (the seam's white space included).

    A model is asked how likely they are or, where ``new_tokens`` is given, to write so many tokens at most, up to one
    of the ``stop`` strings. ``place`` says where the item stands (file and line), ``thinking`` what stands around
    a model's thoughts before its answer.
    """

    prompt: str | Chat
    answers: tuple[str, ...]
    new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    image: str = ""
    place: str = ""
    thinking: Thinking | None = None


def following(prompt: str | Chat, answer: str, delimiter: str | None) -> str:
    """``answer`` as it follows ``prompt``: after the delimiter or, where that is None, after one space, unless the
    prompt is empty or either side has white space at the seam already. In a conversation it stands by itself."""
    if not prompt or isinstance(prompt, Chat):
        return answer
    if delimiter is None:
        delimiter = "" if prompt[-1].isspace() or answer[:1].isspace() else " "
    return delimiter + answer


def shown_answers(items: Sequence[Item]) -> list[str | None]:
    """Why an item measures nothing, for each of ``items``: its prompt has its own question, answered, as when
    examples were drawn from the items themselves. None for all others.

    An item's question is the last paragraph of its prompt, or the last line of a prompt of one paragraph, where no
    other item has the same.
    """
    said = ("\n\n".join(one.content for one in item.messages) if item.messages else item.prompt for item in items)
    parts = [_parts(text) for text in said]
    known = Counter(question for _, question in parts)
    return [
        "its prompt has its own question, answered; leave an item out of its own examples"
        if question and known[question] == 1 and any(_is_answered(before, question, one) for one in item.answers)
        else None
        for item, (before, question) in zip(items, parts, strict=True)
    ]


_MOST_BETWEEN = 20
"""White space between a question and its answer."""


def _parts(prompt: str) -> tuple[str, str]:
    """What stands before the question of a prompt, and the question."""
    text = prompt.strip()
    for seam in ("\n\n", "\n"):
        before, found, question = text.rpartition(seam)
        if found:
            return before, question.strip()
    return "", ""


def _is_answered(before: str, question: str, answer: str) -> bool:
    at = before.find(question)
    while at >= 0:
        end = at + len(question)
        if before[end : end + len(answer) + _MOST_BETWEEN].lstrip().startswith(answer.strip()):
            return True
        at = before.find(question, at + 1)
    return False
