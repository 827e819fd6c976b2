"""docs/methods.md lists the registry as it is."""

from __future__ import annotations

from pathlib import Path

from mergefront.optimizer.recipes.methods import methods_table


def test_the_docs_hold_the_registry() -> None:
    text = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    assert methods_table() in text, "regenerate the table in docs/methods.md with methods_table()"
