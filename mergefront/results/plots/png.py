"""The front as a PNG, drawn by matplotlib without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from mergefront.notebook import FRONT, SUGGESTED
from mergefront.results.plots.picture import GRID, Axis, Picture, Series

_INK = "#212529"
_DPI = 150
_LABEL_SIZE = 8.0
_OFFSETS = (
    (6, 5), (6, -11), (-6, 5), (-6, -11), (0, 9), (0, -15), (12, -3), (-12, -3), (14, 10), (14, -16), (-14, 10),
    (-14, -16),
)  # fmt: skip
"""Where a label may stand beside its point, best first."""


def write_png(shown: Picture, path: Path) -> None:
    draw(shown).savefig(path, dpi=_DPI, facecolor="white")


def draw(shown: Picture) -> Figure:
    """The figure: one panel for one or two objectives, a triangle of pairs for more."""
    panels = shown.panels()
    side = max(len(shown.objectives) - 1, 1)
    size = (10.0, 6.2) if side == 1 else (1.2 + 3.5 * side, 0.9 + 3.1 * side)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(shown.title, fontsize=12, color=_INK, parse_math=False)
    grid = figure.subplots(side, side, squeeze=False, sharex="col", sharey="row")
    drawn = [grid[row][column] for row in range(side) for column in range(row + 1)]
    for axes, (across, up) in zip(drawn, panels, strict=True):
        _panel(axes, shown.series(), across, up)
    if side == 1:
        name, corners = shown.border()
        axes = drawn[0]
        axes.plot(*zip(*corners, strict=True), color=FRONT, alpha=0.45, linewidth=1.3, zorder=1, label=name)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9, frameon=False)
    else:
        for row in range(side):
            for column in range(side):
                grid[row][column].label_outer() if column <= row else grid[row][column].set_visible(False)
        # The triangle leaves the upper right corner free.
        holder = figure.add_subplot(grid[0][1].get_subplotspec())
        holder.axis("off")
        holder.legend(*drawn[0].get_legend_handles_labels(), loc="upper left", fontsize=9, frameon=False)
    figure.draw_without_rendering()
    for axes, (across, up) in zip(drawn, panels, strict=True):
        _label_trials(axes, shown, across, up)
    return figure


def _panel(axes: Any, drawn: list[Series], across: Axis, up: Axis) -> None:
    axes.set_xlabel(across.title, parse_math=False)
    axes.set_ylabel(up.title, parse_math=False)
    if across.index is None:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#adb5bd")
    axes.tick_params(colors=_INK, labelsize=9)
    for layer, series in enumerate(drawn, start=2):
        xs, ys = across.values(series.points), up.values(series.points)
        if series.with_errors:
            errors = {"xerr": across.errors(series.points), "yerr": up.errors(series.points)}
            axes.errorbar(xs, ys, **errors, fmt="none", ecolor=series.color, elinewidth=0.8, alpha=0.35, zorder=1)
        # The marks' area in square points; 0.65 points a pixel is chosen by hand.
        look = {"marker": series.symbol[0], "s": (0.65 * series.size) ** 2, "label": series.name, "zorder": layer}
        if series.hollow:
            axes.scatter(xs, ys, facecolors="none", edgecolors=series.color, linewidths=1.8, **look)
        else:
            axes.scatter(xs, ys, color=series.color, edgecolors="white", linewidths=0.7, **look)
    axes.margins(0.09)


def _label_trials(axes: Any, shown: Picture, across: Axis, up: Axis) -> None:
    """Writes trial numbers beside the merges on the front, where there is room; the suggested one's comes first.

    A label that would cover a marker or another label is moved, and left out when nothing is free.
    """
    scale = _DPI / 72.0
    points = list(shown.points)
    places = axes.transData.transform(list(zip(across.values(points), up.values(points), strict=True)))
    visible = [(point, x, y) for point, (x, y) in zip(points, places, strict=True)]
    taken = [
        Bbox.from_extents(px - 5 * scale, py - 5 * scale, px + 5 * scale, py + 5 * scale)
        for point, px, py in visible
        if point.on_front or point.anchor is not None
    ]
    frame = axes.get_window_extent()
    wanted = [entry for entry in visible if entry[0].on_front and entry[0].anchor is None]
    for point, px, py in sorted(wanted, key=lambda entry: not entry[0].suggested):
        text = str(point.number)
        width, height = 0.64 * _LABEL_SIZE * len(text) * scale, _LABEL_SIZE * scale
        reach = 1.5 if point.suggested else 1.0  # clear of the ring
        for dx, dy in ((reach * x, reach * y) for x, y in _OFFSETS):
            left = px + dx * scale - (width if dx < 0 else width / 2 if dx == 0 else 0)
            box = Bbox.from_extents(left, py + dy * scale, left + width, py + dy * scale + height)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                look = {"color": SUGGESTED, "fontweight": "bold"} if point.suggested else {"color": FRONT}
                axes.text(
                    *axes.transData.inverted().transform((box.x0, box.y0)),
                    text,
                    fontsize=_LABEL_SIZE,
                    zorder=20,
                    **look,
                )
                break
