"""The demo's three skills, their items, and the words that its models speak.

reverse gacfbdaa:  aadbfcag     asked for the answer itself (exact match of greedy generation)
sort gacfbdaa:     aaabcdfg     likewise
most gacfbdaa:     a            the commonest letter; asked which of four letters is likeliest
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

LETTERS = "abcdefghijkl"
LENGTH = 8


SKILLS: Mapping[str, Callable[[str], str]] = {
    "reverse": lambda letters: letters[::-1],
    "sort": lambda letters: "".join(sorted(letters)),
    "most": lambda letters: Counter(letters).most_common(1)[0][0],
}

END = "\n"
VOCABULARY = ("<pad>", "<eos>", END, " ", ":", *LETTERS, *SKILLS)
"""Every token: the skills' names are words, everything else is one character."""


def prompt(skill: str, letters: str) -> str:
    return f"{skill} {letters}:"


def draw(skill: str, rng: random.Random) -> str:
    """Eight random letters; for "most" one of them is commoner than every other and four are different."""
    while True:
        letters = "".join(rng.choices(LETTERS, k=LENGTH))
        counts = [count for _, count in Counter(letters).most_common()]
        if skill != "most" or (len(counts) >= 4 and counts[0] > counts[1]):
            return letters


def questions(skill: str, rng: random.Random, count: int) -> list[str]:
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[draw(skill, rng)] = None
    return list(drawn)


def item(skill: str, letters: str, rng: random.Random) -> dict[str, Any]:
    answer = SKILLS[skill](letters)
    if skill != "most":
        return {"prompt": prompt(skill, letters), "answer": answer}
    choices = [letter for letter, _ in Counter(letters).most_common(4)]
    rng.shuffle(choices)
    return {"prompt": prompt(skill, letters), "choices": choices, "answer": choices.index(answer)}
