"""How numbers, coefficients and trials are written in messages, tables, plots and cards; the screen they go to."""

from __future__ import annotations

import html
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from mergefront.optimizer.foreign_text import visible
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.scores.comparison import Difference
from mergefront.optimizer.scores.evaluation import MONEY
from mergefront.optimizer.scores.objectives import Objective

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from mergefront.optimizer.scores.pareto import Hypervolume

PIPE_WIDTH = 100
ARROWS = {"maximize": "↑", "minimize": "↓"}
_ROUNDING = 1e-9
"""What sums of floating-point numbers leave of 0; no score, error or bound is as small."""


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout (or ``stream``) that shows text as it is; 100 columns where there is no terminal."""
    from rich.console import Console

    class Screen(Console):
        """Everything that is printed as a str goes through here, cells of tables too."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(visible(text), **options)

    file = sys.stdout if stream is None else stream
    width = None if file.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Screen(file=file, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def number(value: float) -> str:
    """Three decimals; none for large numbers, two digits for very small ones."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size < _ROUNDING:
        return "0.000"
    if 0.0005 <= size < 1000:
        return f"{value:.3f}"
    return f"{value:,.0f}" if 1000 <= size < 1e7 else f"{value:.2g}"


def score(value: float, standard_error: float | None) -> str:
    """``0.610 ± 0.049``; the number alone when its noise is not known or it is exact."""
    if standard_error is None or not math.isfinite(standard_error) or standard_error < _ROUNDING:
        return number(value)
    # Digits far below the error say nothing.
    return f"{number(value if abs(value) >= min(standard_error, 0.0005) else 0.0)} ± {number(standard_error)}"


def hypervolume(found: Hypervolume) -> str:
    """``0.610``, or ``0.610 ± 0.001 (estimated)``."""
    return score(found.value, found.standard_error) + (" (estimated)" if found.standard_error else "")


def with_interval(value: float, interval: tuple[float, float] | None) -> str:
    """``0.610 (0.512 to 0.700)``; the number alone where it has no interval."""
    return number(value) + ("" if interval is None else f" ({number(interval[0])} to {number(interval[1])})")


def heading(objective: Objective) -> str:
    """``maths ↑``: the name and where better lies."""
    return f"{objective.name} {ARROWS[objective.direction]}"


def html_text(text: str, quote: bool = True) -> str:
    """Text, which others may have written, as it stands in a page."""
    return html.escape(visible(text), quote)


def size(count: int) -> str:
    """``269 MB``, or ``412 kB`` of less than a megabyte; ``count`` is in bytes."""
    return f"{count / 1e6:,.0f} MB" if count >= 999_500 else f"{max(count / 1e3, 1):.0f} kB"


def amount(kind: str, value: float) -> str:
    """A cost of an evaluation: how many of a kind, or money."""
    return f"{value:,.4g} {kind}" if kind == MONEY else f"{value:,.0f} {kind.replace('_', ' ')}"


def duration(seconds: float) -> str:
    """``3.2 s``, ``4:05`` or ``2:10:00``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def coefficients(params: Mapping[str, Any], experts: Iterable[str], wanted: Iterable[str] | None = None) -> str:
    """``weight 0.40/0.70 · density 0.50/0.90``: the experts' values in their order, in one line.

    Coefficients that vary over depth or module kinds are shown as their range: ``0.10…0.90``.
    ``wanted`` are the names to show (all by default).
    """
    known = list(experts)
    shown = params if wanted is None else {name: params[name] for name in wanted if name in params}
    groups: dict[str, dict[str, list[Any]]] = {}
    for name, value in shown.items():
        read = CoefficientName.guess(name)
        owner = read.expert if read.expert in known else ""
        groups.setdefault(read.parameter, {}).setdefault(owner or "", []).append(value)
    parts = []
    for parameter, owners in groups.items():
        own = [_range(owners[expert]) if expert in owners else "–" for expert in known] if set(owners) - {""} else []
        common = [_range(owners[""])] if "" in owners else []
        parts.append(f"{parameter} {'/'.join([*own, *common])}")
    return " · ".join(parts)


def _range(values: Sequence[Any]) -> str:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return _coefficient(low) if low == high else f"{_coefficient(low)}…{_coefficient(high)}"
    different = list(dict.fromkeys(str(value).lower() if isinstance(value, bool) else str(value) for value in values))
    return "|".join(different)


def _coefficient(value: float) -> str:
    """Two decimals; what is not 0 is not shown as 0, as a small weight may count in full where it is the only one."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.005 else f"{value:.1g}"


def difference(part: Difference, objective: Objective | None = None) -> str:
    """``+0.120 ± 0.031``; with its objective in that one's own direction (less of a minimised one is −)."""
    mean = part.mean if objective is None else objective.sign * part.mean
    shown = score(abs(mean), part.standard_error)
    return shown if shown.split()[0] == number(0.0) else f"{'+' if mean > 0 else '−'}{shown}"


def p_value(value: float) -> str:
    """``= 0.031``, or ``< 0.001``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def trial(number: int, anchor: str | None = None) -> str:
    """``trial 3``, or ``trial 4 (uniform average)``."""
    return f"trial {number}" + (f" ({anchor})" if anchor else "")


def trials(numbers: Sequence[int]) -> str:
    """``trial 3`` or ``trials 3, 5 and 8``; long lists are cut."""
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    if len(numbers) > 8:
        return f"{len(numbers)} trials ({', '.join(map(str, numbers[:5]))}, ...)"
    return f"trials {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def nothing_feasible(nearest: int, violations: Mapping[str, float]) -> str:
    """That no candidate satisfies the constraints, and by how much the nearest trial misses them."""
    missed = ", ".join(f"{name} by {number(by)}" for name, by in violations.items() if by > 0)
    return f"No candidate satisfies the constraints yet. Trial {nearest} comes nearest; it misses {missed}."
