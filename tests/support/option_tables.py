"""The tables of tasks' options in docs, made of the registries of options and metrics.

python tests/support/option_tables.py        writes them into their pages
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "jsonl": DOCS / "reference" / "metrics.md",
    "lm_eval": DOCS / "how-to" / "lm-eval.md",
    "classify": DOCS / "how-to" / "encoders.md",
    "embed": DOCS / "how-to" / "encoders.md",
    "python": DOCS / "how-to" / "functions.md",
}
"""Where the options of a type of task are documented."""


def table(kind: str) -> list[str]:
    """The rows of one type of task: option, default, which metrics have a use for it, meaning."""
    from mergefront.adapters.tasks.task_types import TASK_TYPES, task_defaults

    options, defaults = TASK_TYPES[kind].options, task_defaults({"type": kind})
    uses = {name: f" ({who})" for name, who in metrics_of_options().items()} if kind == "jsonl" else {}
    rows = [
        f"| `{name}` | {_default(name, field.is_required(), defaults)} | {field.description}{uses.get(name, '')} |"
        for name, field in sorted(
            options.model_fields.items(),
            key=lambda one: (not one[1].is_required(), one[0] not in vars(options)["__annotations__"]),
        )
    ]
    return ["| option | default | meaning |", "| -- | -- | -- |", *rows]


def metrics_of_options() -> dict[str, str]:
    """Who has a use for each option of metrics."""
    from mergefront.adapters.tasks.metrics.known_metrics import METRICS
    from mergefront.adapters.tasks.metrics.metric_spec import WRITTEN

    users: dict[str, list[str]] = {}
    for metric in METRICS.values():
        for option in metric.options:
            users.setdefault(option, []).append(f"`{metric.name}`")
    return {
        option: "whatever the model writes" if option in WRITTEN else ", ".join(metrics)
        for option, metrics in users.items()
    }


def _default(name: str, required: bool, defaults: Mapping[str, Any]) -> str:
    if name in defaults:
        return f"`{json.dumps(defaults[name])}`"
    return "required" if required else "none"


def with_tables(page: str) -> str:
    """The page with its tables as the registries have them; each lies between two comments that name its type."""

    def made(found: re.Match[str]) -> str:
        return "\n".join([found[1], "", *table(found[2]), "", found[4]])

    return re.sub(r"(<!-- options of (\w+) -->)(.*?)(<!-- end of options -->)", made, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in set(PAGES.values()):
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
