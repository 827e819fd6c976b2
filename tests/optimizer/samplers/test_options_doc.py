"""docs/reference/samplers.md lists the samplers and every option of each as the registry has them.

``python tests/optimizer/samplers/test_options_doc.py`` prints both tables.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from mergefront.optimizer.samplers.registry import SAMPLERS, _sampler_class, check_sampler, resolved_options
from mergefront.optimizer.sections import PlainSchema, words

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "samplers.md"


def samplers_table() -> str:
    """What each sampler is and can do."""
    lines = ["| sampler | is | objectives | constraints |", "| -- | -- | -- | -- |"]
    for spec in SAMPLERS.values():
        objectives = (
            "any"
            if spec.max_objectives is None
            else "one"
            if spec.max_objectives == 1
            else f"up to {spec.max_objectives}"
        )
        constraints = "yes" if spec.takes_constraints else "no"
        lines.append(f"| `{spec.name}` | {spec.summary} | {objectives} | {constraints} |")
    return "\n".join(lines)


def options_table() -> str:
    """Every option of every sampler: what it may be, what it is when it is left out, what it means."""
    lines = ["| sampler | option | values | default | meaning |", "| -- | -- | -- | -- | -- |"]
    for spec in SAMPLERS.values():
        forms = spec.options.model_json_schema(schema_generator=PlainSchema).get("properties", {})
        for name, field in spec.options.model_fields.items():
            allowed = [one for one in forms[name].get("anyOf", [forms[name]]) if one.get("type") != "null"]
            said = str(field.default).lower() if isinstance(field.default, bool) else field.default
            lines.append(
                f"| `{spec.name}` | `{name}` | {words(allowed[0])} | {'' if said is None else said} | "
                f"{field.description} |"
            )
    return "\n".join(lines)


def test_the_docs_hold_the_registry() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for table in (samplers_table(), options_table()):
        assert table in text, f"docs/reference/samplers.md is not what 'python {Path(__file__).name}' prints"


def test_every_default_is_the_constructors_or_is_said() -> None:
    for spec in SAMPLERS.values():
        arguments = inspect.signature(_sampler_class(spec)).parameters
        for name, field in spec.options.model_fields.items():
            assert field.default == arguments[name].default, f"{spec.name}: {name}"
            assert field.default is not None or "by default" in str(field.description), f"{spec.name}: {name}"
        assert check_sampler(spec.name, resolved_options(spec.name, {}), 1) == []


if __name__ == "__main__":
    print(samplers_table(), options_table(), sep="\n\n")
