"""The front as one HTML file that needs nothing else, drawn by plotly."""

from __future__ import annotations

from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mergefront import formatting
from mergefront.results.plots.picture import Picture, Point, axis_title

FRONT = "#0072b2"
FAINT = "#c3c8ce"
KNEE = "#d55e00"
ANCHOR_COLOURS = ("#000000", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
ANCHOR_SYMBOLS = (
    "square",
    "triangle-up",
    "triangle-down",
    "diamond",
    "cross",
    "x",
    "pentagon",
    "triangle-left",
    "triangle-right",
    "hexagon",
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font-family: sans-serif; margin: 1rem auto; max-width: 1250px; color: #212529; }}</style></head>
<body><h1 style="font-size: 1.3rem">{title}</h1>
{figures}
</body></html>
"""


def write_html(shown: Picture, path: Path) -> None:
    """Draw ``shown`` into ``path``: plotly itself is inside the file, nothing is loaded from elsewhere."""
    drawn = figures(shown)
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config={"displaylogo": False, "responsive": True})
        for index, figure in enumerate(drawn)
    ]
    title = (
        f"{shown.study}: the front after {shown.evaluations} evaluations "
        f"(hypervolume {formatting.number(shown.hypervolume)})"
    )
    path.write_text(_PAGE.format(title=escape(title), figures="\n".join(parts)), encoding="utf-8")


def figures(shown: Picture) -> list[Any]:
    """One scatter for one or two objectives; for more, a triangle of pairs and parallel coordinates."""
    if len(shown.objectives) > 2:
        return [_pairs(shown), _parallel(shown)]
    return [_history(shown) if len(shown.objectives) == 1 else _plane(shown)]


def _plane(shown: Picture) -> Any:
    figure = go.Figure()
    corners = shown.staircase()
    figure.add_scatter(
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        mode="lines",
        name="border of the front",
        line={"color": FRONT, "width": 1.5},
        opacity=0.5,
        hoverinfo="skip",
    )
    for name, points, style in _groups(shown):
        figure.add_trace(_markers(shown, name, points, style, 0, 1, legend=True))
    figure.update_xaxes(title=_safe(axis_title(shown.objectives[0])))
    figure.update_yaxes(title=_safe(axis_title(shown.objectives[1])))
    return _styled(figure, 620)


def _history(shown: Picture) -> Any:
    figure = go.Figure()
    for name, points, style in _groups(shown):
        trace = _markers(shown, name, points, style, 0, 0, legend=True)
        trace.update(x=[point.number for point in points], error_x=None)
        figure.add_trace(trace)
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title=_safe(axis_title(shown.objectives[0])))
    return _styled(figure, 520)


def _pairs(shown: Picture) -> Any:
    panels = len(shown.objectives) - 1
    figure = make_subplots(
        rows=panels, cols=panels, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.03
    )
    for row in range(panels):
        for column in range(row + 1):
            for name, points, style in _groups(shown):
                trace = _markers(shown, name, points, style, column, row + 1, legend=row == column == 0)
                figure.add_trace(trace, row=row + 1, col=column + 1)
        figure.update_yaxes(title=_safe(formatting.heading(shown.objectives[row + 1])), row=row + 1, col=1)
    for column in range(panels):
        figure.update_xaxes(
            title=_safe(formatting.heading(shown.objectives[column])), row=panels, col=column + 1, showticklabels=True
        )
        for row in range(column):
            figure.update_xaxes(visible=False, row=row + 1, col=column + 1)
            figure.update_yaxes(visible=False, row=row + 1, col=column + 1)
    figure = _styled(figure, 260 + 240 * panels)
    return figure.update_layout(legend={"x": 1.0, "y": 1.0, "xanchor": "right", "bgcolor": "rgba(255,255,255,0.9)"})


def _parallel(shown: Picture) -> Any:
    """One line per candidate; minimised axes are turned over, so that up is better everywhere."""
    dimensions = []
    for index, objective in enumerate(shown.objectives):
        values = [point.scores[index] for point in shown.points]
        low, high = min(values), max(values)
        ends = [low, high] if low < high else [low - 0.5, high + 0.5]
        dimensions.append(
            {
                "label": _safe(formatting.heading(objective)),
                "values": values,
                "range": ends if objective.direction == "maximize" else ends[::-1],
            }
        )
    kinds = [
        0.0 if not point.on_front and point.anchor is None else 0.5 if point.anchor is not None else 1.0
        for point in shown.points
    ]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": kinds, "cmin": 0, "cmax": 1, "colorscale": [[0, FAINT], [0.5, "#e69f00"], [1, FRONT]]},
        )
    )
    return _styled(figure, 420).update_layout(
        title={
            "text": "Every candidate, up is better: blue merges on the front, yellow anchors, grey dominated merges "
            "(drag along an axis to select)",
            "font": {"size": 14},
        },
        margin={"l": 70, "r": 70, "t": 90, "b": 40},
    )


def _groups(shown: Picture) -> list[tuple[str, list[Point], dict[str, Any]]]:
    """(legend entry, points, marker) in drawing order."""
    groups: list[tuple[str, list[Point], dict[str, Any]]] = [
        ("dominated merge", shown.dominated, {"color": FAINT, "size": 7, "symbol": "circle"}),
        ("merge on the front", shown.front_merges, {"color": FRONT, "size": 10, "symbol": "circle"}),
        (
            "knee",
            [point for point in shown.points if point.knee],
            {"color": KNEE, "size": 20, "symbol": "circle-open", "line": {"width": 2.5, "color": KNEE}},
        ),
    ]
    groups += [
        (f"{point.anchor} (trial {point.number})", [point], {"color": color, "size": 12, "symbol": symbol})
        for point, color, symbol in zip(shown.anchors, cycle(ANCHOR_COLOURS), cycle(ANCHOR_SYMBOLS), strict=False)
    ]
    return [group for group in groups if group[1]]


def _markers(
    shown: Picture, name: str, points: list[Point], marker: dict[str, Any], x: int, y: int, *, legend: bool
) -> Any:
    noisy = name not in ("dominated merge", "knee")
    text = "+text" if name == "merge on the front" else ""
    return go.Scatter(
        x=[point.scores[x] for point in points],
        y=[point.scores[y] for point in points],
        mode=f"markers{text}",
        name=_safe(name),
        legendgroup=_safe(name),
        showlegend=legend,
        marker=marker,
        text=[str(point.number) for point in points] if text else None,
        textposition="top right",
        textfont={"size": 10, "color": FRONT},
        error_x=_errors(points, x, marker["color"]) if noisy else None,
        error_y=_errors(points, y, marker["color"]) if noisy else None,
        hoverinfo="skip" if name == "knee" else "text",
        hovertext=[_hover(shown, point) for point in points],
    )


def _errors(points: list[Point], index: int, color: str) -> dict[str, Any] | None:
    if not any(point.errors[index] for point in points):
        return None
    return {
        "type": "data",
        "array": [point.errors[index] or 0.0 for point in points],
        "thickness": 0.7,
        "width": 0,
        "color": color,
    }


def _hover(shown: Picture, point: Point) -> str:
    lines = [f"trial {point.number}" + (f", {point.anchor}" if point.anchor else "") + (", knee" if point.knee else "")]
    lines += [
        f"{formatting.heading(objective)}  {formatting.score(value, error)}"
        for objective, value, error in zip(shown.objectives, point.scores, point.errors, strict=True)
    ]
    coefficients = point.coefficients if len(point.coefficients) <= 160 else point.coefficients[:157] + "..."
    return "<br>".join(_safe(line) for line in (*lines, coefficients))


def _safe(text: str) -> str:
    """Plotly reads some HTML in texts; names are not HTML."""
    return escape(text, quote=False)


def _styled(figure: Any, height: int) -> Any:
    figure.update_layout(
        template="simple_white",
        height=height,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(showgrid=True, gridcolor="#e9ecef")
    figure.update_yaxes(showgrid=True, gridcolor="#e9ecef")
    return figure
