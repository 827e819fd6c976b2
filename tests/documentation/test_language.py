"""Pages stay readable: short sentences, plain words, and no page that nobody reads to its end."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from page_blocks import ROOT

MOST_LINES = 250


@pytest.fixture(scope="module")
def readability() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readability", ROOT / "tools" / "readability.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sentences_are_short(readability: ModuleType) -> None:
    found = [
        one
        for path in readability.pages()
        for text in readability.paragraphs(path.read_text())
        for one in readability.sentences(text)
    ]
    long = [one for one in found if readability.words(one) > readability.LONGEST]
    assert len(found) > 1000 and len(long) < 0.005 * len(found), "python tools/readability.py --long lists them"
    assert max(map(readability.words, found)) <= 40


def test_the_documentation_is_plain_english(readability: ModuleType) -> None:
    if importlib.util.find_spec("textstat") is None:
        pytest.skip("needs the extra 'docs'")
    assert readability.ease("\n\n".join(path.read_text() for path in readability.pages()))[0] >= 55


def test_no_page_is_long() -> None:
    for path in (ROOT / "docs").rglob("*.md"):
        if path.name != "search-problems.md":  # a table for each problem, written by the benchmark
            assert len(path.read_text().splitlines()) <= MOST_LINES, path
