"""A verdict as lines of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from mergefront.formatting import difference, nothing_feasible, number, p_value, trials
from mergefront.optimizer.scores.differences import LEVEL
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.verdict import Verdict
from mergefront.study.stored_study import Study


def no_merge_on_front(study: Study) -> str:
    """Why a front holds no merge beside the anchors."""
    if not study.front():
        nearest = study.nearest_to_feasible()
        return nothing_feasible(nearest.number, nearest.violations)
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
    gap = f"{difference(overall.difference)}{f', p {p_value(overall.p_value)}' if found.noise_known else ''}"
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
