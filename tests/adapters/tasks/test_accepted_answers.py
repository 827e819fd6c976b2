"""Whether the beginning of an answer can still become an accepted one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.accepted_answers import may_become
from mergefront.adapters.tasks.metrics.generation_metrics import is_answer

SPECIAL = ["a", "an", "the", "The ", " ", "\n", ".", "-", "é", "e\u0301", "\u0301", "\u0327", "=", "\u0338", "ß", "ﬁ"]
SPECIAL += ["\ufdfa", "İ", "ᾳ", "12", "1", "€", "가", "ᄀ", "ᅡ", "\u200b", "Ａ"]
PIECES = st.one_of(st.sampled_from(SPECIAL), st.text(max_size=3))
TEXTS = st.lists(PIECES, max_size=5).map("".join)


def item(*answers: str) -> Item:
    return Item(id="one", prompt="p", answers=answers)


@given(TEXTS, TEXTS, st.booleans())
@example("\u1fb3\u0301", "", True)
@settings(max_examples=300, deadline=None)
def test_no_beginning_of_an_accepted_text_is_given_up(answer: str, around: str, normalise: bool) -> None:
    """A candidate would be scored 0 for an answer that it writes."""
    for text in (answer, f" {answer}\n", f"the {answer}.", unicodedata.normalize("NFD", answer), answer + around):
        if is_answer(text, item(answer), normalise):
            for end in range(len(text) + 1):
                assert may_become(text[:end], [answer], normalise=normalise), (text[:end], text)


@given(TEXTS, TEXTS, TEXTS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_what_is_given_up_is_no_answer_however_it_goes_on(text: str, more: str, answer: str, normalise: bool) -> None:
    if not may_become(text, [answer], normalise=normalise):
        assert not is_answer(text + more, item(answer), normalise)


@pytest.mark.parametrize(
    ("text", "normalise", "possible"),
    [
        ("B", False, False),
        ("13", False, False),
        (" 12 and", False, False),
        ("12\n", False, True),
        (" 1", False, True),
        ("", False, True),
        ("12.", False, False),
        ("12.", True, True),
        ("the answer", True, False),
        ("the 1", True, True),
        ("Let", True, False),
        ("12 an", True, True),
        ("12 ant", True, False),
    ],
)
def test_what_is_worth_writing_to_its_end(text: str, normalise: bool, possible: bool) -> None:
    """Given up too late, every wrong answer would be written all the same."""
    assert may_become(text, ["12"], normalise=normalise) is possible
