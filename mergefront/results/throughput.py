"""How fast a study gets on, by all its workers together, and what the rest of it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from mergefront.optimizer.scores.evaluation import MONEY, Evaluation
from mergefront.study.definition import StudyDefinition

RECENT = 30
"""So many of the last evaluations tell the present speed."""


@dataclass(frozen=True)
class Throughput:
    """Evaluations ``per_hour``, None before two have finished; what the rest of the budget takes at that speed.

    ``spent`` sums what evaluations cost, by kind ("items", "requests", "tokens"); ``cost_left`` goes on at the
    mean of those that cost something.
    """

    per_hour: float | None
    seconds_left: float | None
    spent: Mapping[str, float]
    cost_left: Mapping[str, float]


@dataclass(frozen=True)
class Spent:
    """What evaluations took: how many, seconds by phase ("merge", "score", "total"), cost by kind."""

    evaluations: int
    seconds: Mapping[str, float]
    cost: Mapping[str, float]


def spent(rows: Iterable[Evaluation]) -> Spent:
    """The sum of what evaluations took."""
    seconds: Counter[str] = Counter()
    cost: Counter[str] = Counter()
    count = 0
    for row in rows:
        count += 1
        seconds.update(row.seconds)
        cost.update(row.cost)
    return Spent(count, seconds, cost)


def budget_lines(definition: StudyDefinition) -> list[str]:
    """The limits of every server that has some, and its prices, as the study file has them."""
    reached = definition.runtime
    sections = {f"members.{name}": one for name, one in reached.get("members", {}).items()} or {"backend": reached}
    lines = []
    for where, section in sections.items():
        limits = {kind: limit for kind, limit in (section.get("budget") or {}).items() if limit is not None}
        prices = {kind: price for kind, price in (section.get("price") or {}).items() if price}
        if limits or prices:
            parts = [f"at most {limit:,g} {kind}" for kind, limit in limits.items()]
            parts += [f"{kind} at {price:g}" for kind, price in prices.items()]
            lines.append(f"{where}: {', '.join(parts)}")
    return lines


def throughput(
    spans: Sequence[tuple[datetime, datetime]], costs: Iterable[Mapping[str, float]], left: int
) -> Throughput:
    """``spans`` are (start, end) of each finished trial, ``left`` is the number of trials to come.

    Pauses in which nobody worked do not count: the speed is the last trials' number over the time that at
    least one of them was under way.
    """
    recent = sorted(spans, key=lambda span: span[1])[-RECENT:]
    busy = _covered(recent)
    per_hour = 3600.0 * len(recent) / busy if len(recent) > 1 and busy > 0 else None
    spent: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for cost in costs:
        spent.update(cost)
        counts.update(cost.keys())
    cost_left = {kind: left * total / counts[kind] for kind, total in spent.items() if kind != MONEY} if left else {}
    return Throughput(per_hour, None if per_hour is None else 3600.0 * left / per_hour, spent, cost_left)


def _covered(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Seconds that at least one span covers."""
    total = 0.0
    end: datetime | None = None
    for start, stop in sorted(spans):
        if end is None or start > end:
            total += max((stop - start).total_seconds(), 0.0)
            end = stop
        elif stop > end:
            total += (stop - end).total_seconds()
            end = stop
    return total
