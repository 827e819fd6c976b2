"""A verdict as lines of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from mergefront.formatting import difference, heading, nothing_feasible, number, p_value, trial, trials
from mergefront.optimizer.scores.differences import LEVEL, score_interval
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.verdict import Verdict
from mergefront.study.stored_study import SPLITS, Study


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
    if study.has_one_objective:
        best = study.best().anchor
        return f"No merge beats the best anchor, {best}: {what} scores no better on the search items{violates}."
    return (
        f"No merge beats the best anchor. The front holds anchors only: on the search items {what} is dominated by an "
        f"anchor{violates}."
    )


def best_line(study: Study) -> str:
    """The best of a study of one objective with its interval, on the search items and as far as known on the others."""
    (objective,) = study.objectives
    best = study.best()
    said = []
    for split in SPLITS:
        for row in study.evaluations_on(split, [best]).values():
            bounds = score_interval(objective, row)
            within = "" if bounds is None else f" (95 % interval {number(bounds[0])} to {number(bounds[1])})"
            where = f" on the {split} items" if row.items else ""
            said.append(f"{number(float(row.scores[objective.name]))}{within}{where}")
    return f"Best: {trial(best.number, best.anchor)}, {heading(objective)} {', '.join(said)}."


def verdict_lines(found: Verdict, objectives: Sequence[Objective]) -> list[str]:
    """The verdict as lines of plain text: the best anchor first, then anchor by anchor."""
    return [*headline(found, objectives), "", basis(found), *_anchor_lines(found, objectives)]


def headline(found: Verdict, objectives: Sequence[Objective]) -> list[str]:
    """Who beats the best anchor, and how the picked merge compares with it."""
    anchor = found.best_anchor
    winners = sorted(match.merge for match in found.beaten_by(anchor))
    who = trials(winners) if winners else "no merge"
    verb = "beat" if len(winners) > 1 else "beats"
    match = found.match(found.picked, anchor)
    parts = []
    for objective in objectives:
        part = match.by_objective[objective.name]
        p = f", p {p_value(part.p_value)}" if found.noise_known else ""
        parts.append(f"{objective.name} {difference(part.difference, objective)}{p}")
    if match.mean is not None:
        ours, theirs = (sum(found.normalised[one]) / len(objectives) for one in (found.picked, found.anchors[anchor]))
        parts.append(
            f"{number(ours)} against {number(theirs)} in the mean of the normalised objectives (0 worst anchor, 1 best "
            f"anchor), {difference(match.mean)}"
        )
    return [
        f"{who[0].upper()}{who[1:]} {verb} the best anchor, {anchor}.",
        f"Trial {found.picked} against it: {'; '.join(parts)}.",
    ]


def basis(found: Verdict) -> str:
    """What the comparisons rest on."""
    if not found.noise_known:
        return "A beats B: better somewhere, worse nowhere (the scores come without noise and are taken as exact)."
    how = "item by item" if found.paired else "by standard errors"
    count = found.comparisons
    corrected = f"; leads Holm-corrected over {count} comparisons" if count > 1 else ""
    return f"A beats B: better somewhere and worse nowhere, beyond noise ({how}, p < {LEVEL:g}{corrected})."


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
            f"{objective.name} {difference(best.by_objective[objective.name].difference, objective)}"
            for objective in objectives
            if objective.name in best.better
        )
        who = trials(sorted(match.merge for match in lost))
        example = gains if len(lost) == 1 else f"trial {best.merge}: {gains}"
        lines.append(f"  {anchor:<{width}}  beaten by {who} ({example})")
    return lines
