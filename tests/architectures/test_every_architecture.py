"""docs/reference/models.md says what each architecture can do: merged, searched, exported, or refused in one line.

The table is made by ``python tests/support/architecture_row.py``; these tests hold it. A few kinds are part of every
run of the suite, all of them of ``make test-models``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from architecture_row import documented, row
from tiny_models import TINY_MODELS

OF_EVERY_KIND = (
    "bart", "clip", "deepseek_v3", "falcon_h1", "gemma3", "gpt2", "llama", "mixtral", "modernbert-decoder",
    "qwen2_5_vl", "qwen3_next", "whisper",
)  # fmt: skip
OTHERS = sorted(TINY_MODELS.keys() - set(OF_EVERY_KIND))


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    "name", [*OF_EVERY_KIND, *(pytest.param(name, marks=pytest.mark.every_architecture) for name in OTHERS)]
)
def test_the_table_says_what_becomes_of_an_architecture(name: str, tmp_path: Path, tokenizer: Any) -> None:
    assert row(TINY_MODELS[name], tokenizer, tmp_path) == documented()[name]


def test_nothing_in_the_table_is_wrong_and_it_has_a_row_for_every_architecture() -> None:
    """Wrong weights or scores in silence, or a search whose result cannot be had."""
    table = documented()
    assert table.keys() == TINY_MODELS.keys() and len(table) >= 60
    wrong = {name: cell for name, cells in table.items() for cell in cells.values() if "WRONG" in cell}
    assert wrong == {}
