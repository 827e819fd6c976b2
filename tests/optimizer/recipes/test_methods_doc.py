"""docs/methods.md lists the registry as it is."""

from __future__ import annotations

from pathlib import Path

from mergefront.optimizer.recipes.methods import METHODS, methods_table


def test_the_docs_hold_the_registry() -> None:
    text = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    built_in = {name: method for name, method in METHODS.items() if method.source != "user-defined"}
    assert methods_table(built_in) in text, "regenerate the table in docs/methods.md with methods_table()"
