"""What a plot of a front shows, as plain data, and how it looks: ``png`` and ``html`` only draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, cycle

import numpy as np

from mergefront import formatting
from mergefront.notebook import FAINT, FRONT, SUGGESTED
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import REFERENCE, Objective
from mergefront.optimizer.scores.pareto import HypervolumeSoFar, nondominated
from mergefront.study.stored_study import Study, rounded

GRID = "#e9ecef"
# Okabe and Ito's colours without the front's blue and the suggestion's vermilion, told apart by everyone; grey in the
# place of black, since pages may be dark.
_ANCHOR_COLOURS = ("#6c757d", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
_CIRCLE = ("o", "circle")
_ANCHOR_SYMBOLS = (
    ("s", "square"),
    ("^", "triangle-up"),
    ("v", "triangle-down"),
    ("D", "diamond"),
    ("P", "cross"),
    ("X", "x"),
    ("p", "pentagon"),
    ("<", "triangle-left"),
    (">", "triangle-right"),
    ("h", "hexagon"),
)
_MOST_HYPERVOLUMES = 150
"""Chosen by hand: more points than this are not told apart in a plot."""


@dataclass(frozen=True)
class Point:
    """One evaluated candidate. ``scores`` and ``errors`` (None where unknown) follow the objectives' order."""

    number: int
    scores: tuple[float, ...]
    errors: tuple[float | None, ...]
    anchor: str | None
    on_front: bool
    suggested: bool
    coefficients: str
    feasible: bool = True


@dataclass(frozen=True)
class Series:
    """Points that look alike. ``symbol`` is matplotlib's name and plotly's; ``size`` a diameter in plotly's pixels."""

    name: str
    points: list[Point]
    color: str
    size: float
    symbol: tuple[str, str] = _CIRCLE
    with_errors: bool = True
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """What one axis of a panel shows: an objective by its index, or the trials' numbers (None)."""

    title: str
    index: int | None

    def values(self, points: list[Point]) -> list[float]:
        return [point.number if self.index is None else point.scores[self.index] for point in points]

    def errors(self, points: list[Point]) -> list[float] | None:
        """Standard errors, 0 where unknown; None where none is known."""
        found = [0.0 if self.index is None else point.errors[self.index] or 0.0 for point in points]
        return found if any(found) else None


@dataclass(frozen=True)
class Picture:
    """Everything that a plot of a front shows; anchors come as points of their own, in their order."""

    title: str
    objectives: tuple[Objective, ...]
    points: tuple[Point, ...]

    @property
    def anchors(self) -> list[Point]:
        return [point for point in self.points if point.anchor is not None]

    @property
    def front_merges(self) -> list[Point]:
        return [point for point in self.points if point.on_front and point.anchor is None]

    @property
    def dominated(self) -> list[Point]:
        return [point for point in self.points if not point.on_front and point.anchor is None]

    def series(self) -> list[Series]:
        anchors = zip(self.anchors, cycle(_ANCHOR_COLOURS), cycle(_ANCHOR_SYMBOLS), strict=False)
        suggested = [point for point in self.points if point.suggested]
        one = len(self.objectives) == 1
        other, good = ("merge", "best merge") if one else ("dominated merge", "merge on the front")
        every = [
            Series(other, self.dominated, FAINT, 7, with_errors=False),
            *(Series(f"{one.anchor} (trial {one.number})", [one], color, 12, mark) for one, color, mark in anchors),
            Series(good, self.front_merges, FRONT, 10),
            Series("suggested", suggested, SUGGESTED, 20, with_errors=False, hollow=True),
        ]
        return [series for series in every if series.points]

    def panels(self) -> list[tuple[Axis, Axis]]:
        """The axes (across, up) of each panel: of one or two objectives one, of more every pair, row by row."""
        axes = [Axis(_title(objective), index) for index, objective in enumerate(self.objectives)]
        if len(axes) == 1:
            return [(Axis("trial", None), axes[0])]
        return [(axes[column], axes[row]) for row in range(1, len(axes)) for column in range(row)]

    def border(self) -> tuple[str, list[tuple[float, float]]]:
        """The name and the corners of the line in the only panel: the best so far, or the border of the front."""
        signs = [objective.sign for objective in self.objectives]
        if len(signs) == 1:
            ordered = sorted((point for point in self.points if point.feasible), key=lambda point: point.number)
            bests = accumulate((point.scores[0] for point in ordered), max if signs[0] > 0 else min)
            return "best so far", _stairs(zip((point.number for point in ordered), bests, strict=True))
        # Estimates of a race, and scores on other items, may say that a member of the front is dominated.
        members = [(point.scores[0], point.scores[1]) for point in self.points if point.on_front]
        kept = nondominated(np.multiply(members, signs)) if members else ()
        front = (member for member, stays in zip(members, kept, strict=True) if stays)
        return "the front", _stairs(sorted(front, key=lambda at: (-signs[0] * at[0], signs[1] * at[1])))


def _stairs(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the line that goes to each point across first and then up."""
    corners: list[tuple[float, float]] = []
    for across, up in points:
        corners += [(across, corners[-1][1]), (across, up)] if corners else [(across, up)]
    return corners


def picture(study: Study, rows: Mapping[int, Evaluation] | None = None) -> Picture:
    """The front of a study as data; with ``rows`` (trial number -> evaluation) these on the report items.

    Raises ``UserError`` when nothing is evaluated yet.
    """
    candidates = study.candidates()
    if not candidates:
        raise UserError(f"study {study.name!r} has no finished evaluation yet; there is nothing to plot")
    on_front = {candidate.digest for candidate in study.front()}
    anchor_digests = {candidate.digest for candidate in candidates if candidate.anchor is not None}
    suggested = study.suggested()
    points = []
    for candidate in candidates:
        if candidate.anchor is None and candidate.digest in anchor_digests:
            continue
        shown = candidate if rows is None else rows.get(candidate.number)
        if shown is None:
            continue
        scores = rounded(shown.scores)
        errors = [shown.standard_errors.get(objective.name) for objective in study.objectives]
        points.append(
            Point(
                candidate.number,
                tuple(scores[objective.name] for objective in study.objectives),
                tuple(None if error is None or error != error else error for error in errors),
                candidate.anchor,
                candidate.digest in on_front,
                suggested is not None and candidate.number == suggested.number,
                f"{candidate.recipe.method}: {formatting.coefficients(candidate.params, study.space.models)}",
                candidate.feasible,
            )
        )
    what = "the best" if study.has_one_objective else "the front"
    title = f"{study.name}: {what} after {study.finished_count()} evaluations"
    if rows is not None:
        title = f"{study.name}: {what} on the report items"
    elif not study.has_one_objective:
        title += f" (hypervolume {formatting.hypervolume(study.measured_hypervolume(candidates))})"
    return Picture(title, study.objectives, tuple(points))


def hypervolumes(study: Study) -> list[tuple[int, float]]:
    """Trial number and hypervolume of everything up to it, by trial; thinned out when long."""
    candidates = study.candidates()
    step = max(1, len(candidates) // _MOST_HYPERVOLUMES)
    so_far = HypervolumeSoFar([REFERENCE] * len(study.objectives))
    history = []
    for index, (candidate, row) in enumerate(zip(candidates, study.normalised(candidates), strict=True)):
        if candidate.feasible:
            so_far.add(row)
        if index % step == 0 or index == len(candidates) - 1:
            history.append((candidate.number, so_far.measured.value))
    return history


def _title(objective: Objective) -> str:
    """``maths ↑ (higher is better)``."""
    better = "higher" if objective.direction == "maximize" else "lower"
    return f"{formatting.heading(objective)} ({better} is better)"
