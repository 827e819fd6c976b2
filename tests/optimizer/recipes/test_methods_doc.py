"""docs/reference/methods.md lists the registry as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mergefront.optimizer.recipes.methods import METHODS, MergeMethod


def methods_table(methods: Mapping[str, MergeMethod]) -> str:
    """The registry as a Markdown table (docs/reference/methods.md holds it, and a test compares)."""
    lines = [
        "| method | what it does | base | models | parameters (default) | source |",
        "| -- | -- | -- | -- | -- | -- |",
    ]
    for method in methods.values():
        base = "needed" if method.needs_base else "optional" if method.optional_base else "no"
        most = "" if method.max_models is None else str(method.max_models)
        models = str(method.min_models) if most == str(method.min_models) else f"{method.min_models}-{most}".rstrip("-")
        models += "+" if method.max_models is None else ""
        parameters = ", ".join(
            f"`{parameter.name}{'[expert]' if parameter.scope == 'model' else ''}`"
            f" ({'required' if parameter.default is None else str(parameter.default).lower()})"
            for parameter in method.parameters
        )
        lines.append(f"| `{method.name}` | {method.summary} | {base} | {models} | {parameters} | {method.source} |")
    return "\n".join(lines)


def test_the_docs_hold_the_registry() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    built_in = {name: method for name, method in METHODS.items() if method.source != "user-defined"}
    assert methods_table(built_in) in text, "regenerate the table in docs/reference/methods.md with methods_table()"
