"""Counters in Prometheus' text format (version 0.0.4), without names of clients or sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

_HELP: Mapping[str, tuple[str, str]] = {
    "requests_total": ("counter", "Answered HTTP requests by route and status."),
    "items_total": ("counter", "Items answered, by verb."),
    "tokens_total": ("counter", "Tokens scored or generated, by verb."),
    "merges_total": ("counter", "Merges written into the resident model."),
    "merge_seconds_total": ("counter", "Seconds spent merging."),
    "work_seconds_total": ("counter", "Seconds spent on jobs, merging included."),
    "failures_total": ("counter", "Jobs that failed, by kind."),
    "waiting": ("gauge", "Jobs that wait for their turn."),
    "sessions": ("gauge", "Sessions that are open."),
}
PREFIX = "mergefront_serve_"


class Metrics:
    """Numbers by name and labels. Not for several threads at once: the event loop's own."""

    def __init__(self) -> None:
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count ``amount`` more."""
        key = tuple(sorted(labels.items()))
        values = self._values[name]
        values[key] = values.get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """What a gauge shows now."""
        self._values[name][tuple(sorted(labels.items()))] = value

    def text(self) -> str:
        """All of it, as a scraper reads it."""
        lines = []
        for name, (kind, description) in _HELP.items():
            lines += [f"# HELP {PREFIX}{name} {description}", f"# TYPE {PREFIX}{name} {kind}"]
            for labels, value in sorted(self._values.get(name, {}).items()):
                inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
                lines.append(f"{PREFIX}{name}{'{' + inside + '}' if inside else ''} {value:.15g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
