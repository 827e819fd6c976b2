"""The front as a PNG, drawn by matplotlib without its global state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from mergefront import formatting
from mergefront.results.plots.picture import Picture, Point, axis_title

FRONT = "#0072b2"
FAINT = "#c3c8ce"
KNEE = "#d55e00"
GRID = "#e9ecef"
INK = "#212529"
# Okabe and Ito's colours without the front's blue and the knee's vermilion: told apart by everyone.
ANCHOR_COLOURS = ("#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
ANCHOR_MARKERS = ("s", "^", "v", "D", "P", "X", "p", "<", ">", "h")
_DPI = 150
_LABEL_SIZE = 8.0
_OFFSETS = (
    (6, 5),
    (6, -11),
    (-6, 5),
    (-6, -11),
    (0, 9),
    (0, -15),
    (12, -3),
    (-12, -3),
    (14, 10),
    (14, -16),
    (-14, 10),
    (-14, -16),
)


def write_png(shown: Picture, path: Path) -> None:
    """Draw ``shown`` into ``path``."""
    figure = draw(shown)
    figure.savefig(path, dpi=_DPI, facecolor="white")


def draw(shown: Picture) -> Figure:
    """The figure: one panel for one or two objectives, a triangle of pairs for more."""
    count = len(shown.objectives)
    panels = max(count - 1, 1)
    size = (10.0, 6.2) if count <= 2 else (1.2 + 3.5 * panels, 0.9 + 3.1 * panels)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{shown.study}: the front after {shown.evaluations} evaluations "
        f"(hypervolume {formatting.number(shown.hypervolume)})",
        fontsize=12,
        color=INK,
        parse_math=False,
    )
    if count <= 2:
        axes = figure.subplots()
        _history(axes, shown) if count == 1 else _scatter(axes, shown, 0, 1, staircase=True)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9, frameon=False)
        labelled = [(axes, _places(shown, count))]
    else:
        grid = figure.subplots(panels, panels, squeeze=False, sharex="col", sharey="row")
        labelled = []
        for row in range(panels):
            for column in range(panels):
                axes = grid[row][column]
                if column > row:
                    axes.set_visible(False)
                    continue
                _scatter(axes, shown, column, row + 1, staircase=False)
                axes.label_outer()
                labelled.append(
                    (axes, [(point, point.scores[column], point.scores[row + 1]) for point in shown.points])
                )
        # The triangle leaves the upper right corner free.
        corner = grid[0][1].get_subplotspec()
        holder = figure.add_subplot(corner)
        holder.axis("off")
        holder.legend(*grid[0][0].get_legend_handles_labels(), loc="upper left", fontsize=9, frameon=False)
    figure.draw_without_rendering()
    for axes, places in labelled:
        _label_trials(axes, places)
    return figure


def _places(shown: Picture, count: int) -> list[tuple[Point, float, float]]:
    if count == 1:
        return [(point, float(point.number), point.scores[0]) for point in shown.points]
    return [(point, point.scores[0], point.scores[1]) for point in shown.points]


def _scatter(axes: Any, shown: Picture, x: int, y: int, *, staircase: bool) -> None:
    """Two objectives against each other."""
    _style(axes)
    axes.set_xlabel(axis_title(shown.objectives[x]), parse_math=False)
    axes.set_ylabel(axis_title(shown.objectives[y]), parse_math=False)
    if staircase:
        corners = shown.staircase()
        axes.plot([a for a, _ in corners], [b for _, b in corners], color=FRONT, alpha=0.45, linewidth=1.3, zorder=2)
    _series(axes, shown.dominated, x, y, color=FAINT, marker="o", size=22, label="dominated merge", errors=False, z=1)
    _series(axes, shown.front_merges, x, y, color=FRONT, marker="o", size=42, label="merge on the front", z=4)
    _knee(axes, [(point, point.scores[x], point.scores[y]) for point in shown.points])
    for point, color, marker in _anchor_styles(shown.anchors):
        label = f"{point.anchor} (trial {point.number})"
        _series(axes, [point], x, y, color=color, marker=marker, size=64, label=label, z=3)
    axes.margins(0.09)


def _history(axes: Any, shown: Picture) -> None:
    """One objective: score by trial, and the best so far."""
    _style(axes)
    objective = shown.objectives[0]
    axes.set_xlabel("trial")
    axes.set_ylabel(axis_title(objective), parse_math=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    ordered = sorted(shown.points, key=lambda point: point.number)
    best: list[float] = []
    for point in ordered:
        value = objective.sign * point.scores[0]
        best.append(max(value, best[-1]) if best else value)
    axes.step(
        [point.number for point in ordered],
        [objective.sign * value for value in best],
        where="post",
        color=FRONT,
        alpha=0.45,
        linewidth=1.3,
        label="best so far",
        zorder=2,
    )
    for points, color, size, label, z in (
        (shown.dominated, FAINT, 22, "merge", 1),
        (shown.front_merges, FRONT, 42, "best merge", 4),
    ):
        if points:
            axes.scatter(
                [p.number for p in points], [p.scores[0] for p in points], color=color, s=size, label=label, zorder=z
            )
    for point, color, marker in _anchor_styles(shown.anchors):
        axes.scatter([point.number], [point.scores[0]], color=color, marker=marker, s=64, label=point.anchor, zorder=3)
    marked = [*shown.front_merges, *shown.anchors]
    for point in marked:
        if point.errors[0]:
            axes.errorbar(
                [point.number], [point.scores[0]], yerr=[point.errors[0]], color="#868e96", linewidth=0.8, zorder=1
            )


def _series(
    axes: Any,
    points: Sequence[Point],
    x: int,
    y: int,
    *,
    color: str,
    marker: str,
    size: float,
    label: str,
    z: int,
    errors: bool = True,
) -> None:
    if not points:
        return
    xs, ys = [point.scores[x] for point in points], [point.scores[y] for point in points]
    if errors and any(point.errors[x] or point.errors[y] for point in points):
        axes.errorbar(
            xs,
            ys,
            xerr=[point.errors[x] or 0.0 for point in points],
            yerr=[point.errors[y] or 0.0 for point in points],
            fmt="none",
            ecolor=color,
            elinewidth=0.8,
            alpha=0.35,
            zorder=1,
        )
    axes.scatter(xs, ys, color=color, marker=marker, s=size, label=label, zorder=z, edgecolors="white", linewidths=0.7)


def _knee(axes: Any, places: Sequence[tuple[Point, float, float]]) -> None:
    for point, x, y in places:
        if point.knee:
            axes.scatter([x], [y], s=170, facecolors="none", edgecolors=KNEE, linewidths=1.8, zorder=5, label="knee")


def _anchor_styles(anchors: Sequence[Point]) -> list[tuple[Point, str, str]]:
    return [
        (point, color, marker)
        for point, color, marker in zip(anchors, cycle(ANCHOR_COLOURS), cycle(ANCHOR_MARKERS), strict=False)
    ]


def _style(axes: Any) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#adb5bd")
    axes.tick_params(colors=INK, labelsize=9)


def _label_trials(axes: Any, places: Sequence[tuple[Point, float, float]]) -> None:
    """Writes trial numbers beside the merges on the front, where there is room; the knee's comes first.

    A label that would cover a marker or another label is moved, and left out when nothing is free.
    """
    scale = _DPI / 72.0
    visible = [(point, *axes.transData.transform((x, y))) for point, x, y in places]
    taken = [
        Bbox.from_extents(px - 5 * scale, py - 5 * scale, px + 5 * scale, py + 5 * scale)
        for point, px, py in visible
        if point.on_front or point.anchor is not None
    ]
    frame = axes.get_window_extent()
    wanted = [entry for entry in visible if entry[0].on_front and entry[0].anchor is None]
    for point, px, py in sorted(wanted, key=lambda entry: not entry[0].knee):
        text = str(point.number)
        width, height = 0.64 * _LABEL_SIZE * len(text) * scale, _LABEL_SIZE * scale
        reach = 1.5 if point.knee else 1.0  # clear of the ring
        for dx, dy in ((reach * x, reach * y) for x, y in _OFFSETS):
            left = px + dx * scale - (width if dx < 0 else width / 2 if dx == 0 else 0)
            box = Bbox.from_extents(left, py + dy * scale, left + width, py + dy * scale + height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                x, y = axes.transData.inverted().transform((box.x0, box.y0))
                axes.text(
                    x,
                    y,
                    text,
                    fontsize=_LABEL_SIZE,
                    color=KNEE if point.knee else FRONT,
                    fontweight="bold" if point.knee else "normal",
                    zorder=6,
                )
                break
