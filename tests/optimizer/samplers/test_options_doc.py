"""docs/search.md lists the samplers and every option of each as the registry has them.

``python tests/optimizer/samplers/test_options_doc.py`` prints both tables.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from mergefront.optimizer.samplers.options import SamplerOption
from mergefront.optimizer.samplers.registry import SAMPLERS, SamplerSpec, _sampler_class, check_sampler

DOCS = Path(__file__).parents[3] / "docs" / "search.md"


def samplers_table() -> str:
    """What each sampler is and can do."""
    lines = ["| sampler | is | objectives | constraints |", "| -- | -- | -- | -- |"]
    for spec in SAMPLERS.values():
        objectives = "any" if spec.max_objectives is None else "one" if spec.max_objectives == 1 else "several"
        constraints = "yes" if spec.takes_constraints else "no"
        lines.append(f"| `{spec.name}` | {spec.summary} | {objectives} | {constraints} |")
    return "\n".join(lines)


def options_table() -> str:
    """Every option of every sampler: what it may be, what it is when it is left out, what it means."""
    lines = ["| sampler | option | values | default | meaning |", "| -- | -- | -- | -- | -- |"]
    for spec in SAMPLERS.values():
        lines += [
            f"| `{spec.name}` | `{name}` | {values(option)} | {default(spec, name, option)} | {option.summary} |"
            for name, option in spec.options.items()
        ]
    return "\n".join(lines)


def values(option: SamplerOption) -> str:
    if option.choices:
        return ", ".join(option.choices)
    kind = {bool: "true, false", str: "text", int: "whole number", float: "number"}[option.kind]
    return kind if option.low is None else f"{kind}, at least {option.low:g}"


def default(spec: SamplerSpec, name: str, option: SamplerOption) -> str:
    """The constructor's own default, or in words what it works out."""
    found = inspect.signature(_sampler_class(spec)).parameters[name].default
    if found is None:
        return option.default
    assert not option.default, "the constructor says it"
    return str(found).lower() if isinstance(found, bool) else str(found)


def test_the_docs_hold_the_registry() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for table in (samplers_table(), options_table()):
        assert table in text, f"docs/search.md is not what 'python {Path(__file__).name}' prints"


def test_every_default_is_said_and_is_itself_accepted() -> None:
    for spec in SAMPLERS.values():
        for name, option in spec.options.items():
            said = default(spec, name, option)
            assert said, f"{spec.name}: nobody learns what {name} is when it is left out"
            found = inspect.signature(_sampler_class(spec)).parameters[name].default
            assert found is None or check_sampler(spec.name, {name: found}, 1) == []


if __name__ == "__main__":
    print(samplers_table(), options_table(), sep="\n\n")
