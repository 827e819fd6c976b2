"""Whether an answer is an accepted one, and whether that can still depend on what is written after its beginning."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from unicodedata import category, normalize

from mergefront.adapters.tasks.metrics.answer_texts import ARTICLES, begun_and_ended, composed, folded, words

_PART_OF_A_CHARACTER = "\ufffd"
_ONE_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class AcceptedAnswers:
    """What ``exact_match`` wants to know of an answer (see ``Wanted``): whether it is one of ``answers``.

    ``ends`` are stop strings of white space that end it behind its first other character.
    """

    answers: tuple[str, ...]
    normalise: bool
    drafts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def ended_by(self, blank: tuple[str, ...]) -> AcceptedAnswers:
        """The same of an answer that stop strings of white space end, and may begin with."""
        begun = tuple(f"{stop}{draft.lstrip()}" for stop in blank for draft in self.drafts)
        return replace(self, drafts=(*self.drafts, *begun), ends=blank)

    def is_open(self, beginning: str) -> bool:
        """Whether what follows can make it an accepted answer, or none."""
        if begun_and_ended(beginning, self.ends) != beginning:
            return False
        return may_become(beginning, self.answers, normalise=self.normalise)


def may_become(text: str, answers: Collection[str], *, normalise: bool) -> bool:
    """False only where no text that begins with ``text`` is one of the ``answers``, compared as ``exact_match`` does.

    Where it cannot be told it is True: then the rest has to be written.
    """
    text = text.rstrip(_PART_OF_A_CHARACTER)
    if normalise:
        return any(_may_become_words(text, answer) for answer in answers)
    begun = _settled(normalize("NFD", text.lstrip()))
    return any(_may_become(begun, normalize("NFD", composed(answer))) for answer in answers)


def _may_become(begun: str, answer: str) -> bool:
    return answer.startswith(begun) or (begun.startswith(answer) and not begun[len(answer) :].strip())


def _settled(decomposed: str) -> str:
    """A decomposed text without the marks at its end, which others that follow may come before."""
    end = len(decomposed)
    while end and category(decomposed[end - 1]).startswith("M"):
        end -= 1
    return decomposed[:end]


def _may_become_words(text: str, answer: str) -> bool:
    """The same for answers that are compared word by word (see ``normalised``)."""
    wanted = words(answer)
    if not wanted:
        return True
    *whole, last = [*text.split(), ""] if text[-1:].isspace() or not text.strip() else text.split()
    said = words(" ".join(whole))
    begun = folded(last)
    if said != wanted[: len(said)]:
        return False
    if words(last) != [begun] or not _ONE_WORD.fullmatch(begun):
        return True  # nothing yet, an article, or what an article may follow without a space
    # Marks may still come before those at its end, and folding makes letters of some (the iota below an alpha).
    begun = _settled(normalize("NFKD", folded(_settled(normalize("NFD", last)))))
    following = normalize("NFKD", wanted[len(said)]) if len(said) < len(wanted) else ""
    return following.startswith(begun) or any(article.startswith(begun) for article in ARTICLES)
