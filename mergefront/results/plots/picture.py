"""What a plot of a front shows, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergefront import formatting
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.objectives import Objective

if TYPE_CHECKING:
    from mergefront.study.stored_study import Study


@dataclass(frozen=True)
class Point:
    """One evaluated candidate. ``scores`` and ``errors`` (None where unknown) follow the objectives' order."""

    number: int
    scores: tuple[float, ...]
    errors: tuple[float | None, ...]
    anchor: str | None
    on_front: bool
    knee: bool
    coefficients: str


@dataclass(frozen=True)
class Picture:
    """Everything that a plot of a front shows; anchors come as points of their own, in their order."""

    study: str
    objectives: tuple[Objective, ...]
    points: tuple[Point, ...]
    evaluations: int
    hypervolume: float

    @property
    def anchors(self) -> list[Point]:
        return [point for point in self.points if point.anchor is not None]

    @property
    def front_merges(self) -> list[Point]:
        """Merges on the front, without the anchors."""
        return [point for point in self.points if point.on_front and point.anchor is None]

    @property
    def dominated(self) -> list[Point]:
        """Merges that another candidate dominates."""
        return [point for point in self.points if not point.on_front and point.anchor is None]

    def staircase(self) -> list[tuple[float, float]]:
        """The corners of the attained region's border, for two objectives."""
        first, second = self.objectives
        ordered = sorted(
            (point.scores for point in self.points if point.on_front),
            key=lambda scores: (-first.sign * scores[0], second.sign * scores[1]),
        )
        corners: list[tuple[float, float]] = []
        for scores in ordered:
            if corners:
                corners.append((scores[0], corners[-1][1]))
            corners.append((scores[0], scores[1]))
        return corners


def picture(study: Study) -> Picture:
    """The front of a study as data. Raises ``UserError`` when nothing is evaluated yet."""
    candidates = study.candidates()
    if not candidates:
        raise UserError(f"study {study.name!r} has no finished evaluation yet; there is nothing to plot")
    on_front = {candidate.digest for candidate in study.front()}
    anchor_digests = {candidate.digest for candidate in candidates if candidate.anchor is not None}
    knee = study.knee() if on_front else None
    points = []
    for candidate in candidates:
        if candidate.anchor is None and candidate.digest in anchor_digests:
            continue
        errors = [candidate.standard_errors.get(objective.name) for objective in study.objectives]
        points.append(
            Point(
                candidate.number,
                tuple(candidate.scores[objective.name] for objective in study.objectives),
                tuple(None if error is None or error != error else error for error in errors),
                candidate.anchor,
                candidate.digest in on_front,
                knee is not None and candidate.number == knee.number,
                f"{candidate.recipe.method}: {formatting.coefficients(candidate.params, study.space.models)}",
            )
        )
    return Picture(study.name, study.objectives, tuple(points), study.finished_count(), study.hypervolume(candidates))


def axis_title(objective: Objective) -> str:
    """``maths ↑ (higher is better)``."""
    better = "higher" if objective.direction == "maximize" else "lower"
    return f"{formatting.heading(objective)} ({better} is better)"
