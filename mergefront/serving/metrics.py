"""Numbers in Prometheus' text format (version 0.0.4).

prometheus_client would take as many lines to name a registry's numbers, and one more package."""

from __future__ import annotations

from collections.abc import Mapping


class Metrics:
    """Numbers by name and labels. ``described`` has each name's kind ("counter" or "gauge") and meaning. Not for
    several threads at once."""

    def __init__(self, prefix: str, described: Mapping[str, tuple[str, str]]) -> None:
        self._prefix = prefix
        self._described = described
        self._values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {name: {} for name in described}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        key = tuple(sorted(labels.items()))
        self._values[name][key] = self._values[name].get(key, 0.0) + amount

    def set(self, name: str, value: float, **labels: str) -> None:
        self._values[name][tuple(sorted(labels.items()))] = value

    def text(self) -> str:
        lines = []
        for name, (kind, description) in self._described.items():
            full = self._prefix + name
            lines += [f"# HELP {full} {description}", f"# TYPE {full} {kind}"]
            for labels, value in sorted(self._values[name].items()):
                inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
                lines.append(f"{full}{'{' + inside + '}' if inside else ''} {value:.15g}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
