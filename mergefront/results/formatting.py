"""Numbers and verdicts in words: what tables, plots and model cards have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergefront.optimizer.scores.comparison import Difference
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.verdict import LEVEL, Verdict

if TYPE_CHECKING:
    from mergefront.study.stored_study import Candidate, Study

ARROWS = {"maximize": "↑", "minimize": "↓"}


def number(value: float) -> str:
    """Three decimals; none for large numbers, two digits for very small ones."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0 or 0.0005 <= size < 1000:
        return f"{value:.3f}"
    return f"{value:,.0f}" if 1000 <= size < 1e7 else f"{value:.2g}"


def score(value: float, standard_error: float | None) -> str:
    """``0.610 ± 0.049``; the number alone when its noise is not known or it is exact."""
    if standard_error is None or not math.isfinite(standard_error) or standard_error == 0:
        return number(value)
    return f"{number(value)} ± {number(standard_error)}"


def heading(objective: Objective) -> str:
    """``maths ↑``: the name and where better lies."""
    return f"{objective.name} {ARROWS[objective.direction]}"


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
        parameter, _, inside = name.partition("[")
        owner = inside.rstrip("]").split(",")[0].strip()
        groups.setdefault(parameter, {}).setdefault(owner if owner in known else "", []).append(value)
    parts = []
    for parameter, owners in groups.items():
        own = [_range(owners[expert]) if expert in owners else "–" for expert in known] if set(owners) - {""} else []
        common = [_range(owners[""])] if "" in owners else []
        parts.append(f"{parameter} {'/'.join([*own, *common])}")
    return " · ".join(parts)


def _range(values: Sequence[Any]) -> str:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        return f"{low:.2f}" if low == high else f"{low:.2f}…{high:.2f}"
    different = list(dict.fromkeys(str(value).lower() if isinstance(value, bool) else str(value) for value in values))
    return "|".join(different)


def difference(part: Difference, objective: Objective | None = None) -> str:
    """``+0.120 ± 0.031``; with its objective in that one's own direction (less of a minimised one is −)."""
    mean = part.mean if objective is None else objective.sign * part.mean
    return f"{'+' if mean >= 0 else '−'}{score(abs(mean), part.standard_error)}"


def trials(numbers: Sequence[int]) -> str:
    """``trial 3`` or ``trials 3, 5 and 8``; long lists are cut."""
    if len(numbers) == 1:
        return f"trial {numbers[0]}"
    if len(numbers) > 8:
        return f"{len(numbers)} trials ({', '.join(map(str, numbers[:5]))}, ...)"
    return f"trials {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def nothing_feasible(nearest: Candidate) -> str:
    """That no candidate satisfies the constraints, and which one comes nearest."""
    missed = ", ".join(f"{name} by {number(by)}" for name, by in nearest.violations.items() if by > 0)
    return f"No candidate satisfies the constraints yet. Trial {nearest.number} comes nearest; it misses {missed}."


def no_merge_on_front(study: Study) -> str:
    """Why a front holds no merge beside the anchors."""
    if not study.front():
        return nothing_feasible(study.nearest_to_feasible())
    tried = sum(1 for candidate in study.candidates() if candidate.anchor is None)
    if not tried:
        return "No merge has been tried yet beside the anchors."
    what = "the merge tried" if tried == 1 else f"each of the {tried} merges tried"
    violates = " or violates a constraint" if study.constraints else ""
    return (
        f"No merge beats the best anchor. The front holds anchors only: on the search items {what} is dominated by an "
        f"anchor{violates}."
    )


def verdict_lines(found: Verdict, objectives: Sequence[Objective]) -> list[str]:
    """The verdict as lines of plain text: overall first, then anchor by anchor."""
    return [*overall_lines(found, objectives), "", basis(found), *_anchor_lines(found, objectives)]


def overall_lines(found: Verdict, objectives: Sequence[Objective]) -> list[str]:
    """What the best merge is worth against the best anchor."""
    overall = found.overall
    what = (
        f"in {objectives[0].name}, normalised" if len(objectives) == 1 else "in the mean of the normalised objectives"
    )
    gap = f"{difference(overall.difference)}{_p(overall.p_value) if found.noise_known else ''}"
    numbers = (
        f"{number(overall.merge_mean)} against {number(overall.anchor_mean)} {what} "
        f"(0 worst anchor, 1 best anchor): {gap}"
    )
    if overall.beats:
        return [f"Trial {overall.merge} beats the best anchor, {overall.anchor}: {numbers}."]
    if overall.difference.mean > 0:
        return [
            f"No merge beats the best anchor, {overall.anchor}, beyond noise. Trial {overall.merge} is ahead within "
            f"noise: {numbers}."
        ]
    return [f"No merge beats the best anchor, {overall.anchor}. Trial {overall.merge} comes nearest: {numbers}."]


def basis(found: Verdict) -> str:
    """What the comparisons rest on."""
    if not found.noise_known:
        return "Beaten = better somewhere, worse nowhere (the scores come without noise and are taken as exact):"
    how = "item by item" if found.paired else "by standard errors"
    count = found.comparisons
    corrected = f", Holm-corrected over {count} comparisons" if count > 1 else ""
    return f"Beaten = better somewhere and worse nowhere beyond noise ({how}, p < {LEVEL:g}{corrected}):"


def _anchor_lines(found: Verdict, objectives: Sequence[Objective]) -> list[str]:
    width = max(len(name) for name in found.anchors)
    lines = []
    for anchor in found.anchors:
        lost = found.beaten_by(anchor)
        if not lost:
            lines.append(f"  {anchor:<{width}}  not beaten")
            continue
        best = lost[0]
        gains = ", ".join(
            f"{objective.name} {difference(best.by_objective[objective.name], objective)}"
            for objective in objectives
            if objective.name in best.better
        )
        who = trials(sorted(match.merge for match in lost))
        example = gains if len(lost) == 1 else f"trial {best.merge}: {gains}"
        lines.append(f"  {anchor:<{width}}  beaten by {who} ({example})")
    return lines


def _p(p_value: float) -> str:
    return ", p < 0.001" if p_value < 0.001 else f", p = {p_value:.3f}"
