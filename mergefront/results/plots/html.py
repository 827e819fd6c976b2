"""The front as one HTML file that needs nothing else, drawn by plotly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mergefront import formatting
from mergefront.formatting import html_text
from mergefront.notebook import ANCHOR, FAINT, FRONT, SUGGESTED
from mergefront.results.plots.picture import GRID, Axis, Picture, Point, Series, hypervolumes
from mergefront.results.plots.web_page import web_page

if TYPE_CHECKING:
    from mergefront.study.stored_study import Study

PALETTE = (FRONT, ANCHOR, "#009e73", "#cc79a7", "#56b4e9", SUGGESTED)
"""For what has no colour of its own; Okabe and Ito's."""
_NEAR = (0.075, 0.05)
"""Labels nearer than this share of the panel, across and up, would overlap."""


def write_html(shown: Picture, path: Path) -> None:
    """Draw ``shown`` into ``path``: plotly itself is inside the file, nothing is loaded from elsewhere."""
    drawn = html_of(figures(shown), with_plotly=True)
    path.write_text(web_page(shown.title, f"<h1>{html_text(shown.title)}</h1>\n{drawn}"), encoding="utf-8")


def html_of(drawn: Sequence[Any], *, with_plotly: bool = False) -> str:
    """Figures as HTML; plotly itself has to be on the page once, before them or with them. On a narrow screen figures
    of many panels scroll, and the page does not."""
    config = {"displaylogo": False, "responsive": True}
    parts = []
    for index, figure in enumerate(drawn):
        part = figure.to_html(full_html=False, include_plotlyjs=with_plotly and index == 0, config=config)
        many = figure.layout.dragmode == "select" or figure.data[0].type == "parcoords"
        caption = f"<p>{figure.layout.meta['caption']}</p>\n" if figure.layout.meta else ""
        parts.append(f'{caption}<div class="wide"><div class="many">{part}</div></div>' if many else part)
    return "\n".join(parts)


def figures(shown: Picture) -> list[Any]:
    """One scatter for one or two objectives; for more, a triangle of pairs and parallel coordinates."""
    return [_pairs(shown), _parallel(shown)] if len(shown.objectives) > 2 else [_panel(shown)]


def hypervolume_figure(study: Study) -> Any:
    """The hypervolume of everything up to a trial, by trial, and that of the anchors alone."""
    history = hypervolumes(study)
    anchors = study.anchors()
    of_anchors = {anchor.number for anchor in anchors}
    figure = go.Figure()
    figure.add_scatter(
        x=[number for number, _ in history],
        y=[value for _, value in history],
        mode="lines+markers",
        line={"shape": "hv", "color": FRONT},
        marker={"color": [ANCHOR if number in of_anchors else FRONT for number, _ in history]},
        name="all so far",
    )
    if anchors:
        # The template draws shapes without a line, unless it has a width.
        line = {"dash": "dash", "color": SUGGESTED, "width": 1.5}
        figure.add_hline(y=study.hypervolume(anchors), line=line, opacity=1, annotation_text="the anchors alone")
    figure.update_xaxes(title="trial (yellow: anchors)")
    figure.update_yaxes(title="hypervolume, normalised by the anchors")
    return styled(figure, 380)


def _panel(shown: Picture) -> Any:
    (across, up) = shown.panels()[0]
    name, corners = shown.border()
    figure = go.Figure()
    figure.add_scatter(
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        mode="lines",
        name=name,
        line={"color": FRONT, "width": 1.5},
        opacity=0.5,
        hoverinfo="skip",
    )
    for series in shown.series():
        figure.add_trace(_markers(shown, series, across, up, legend=True))
    figure.update_xaxes(title=_safe(across.title))
    figure.update_yaxes(title=_safe(up.title))
    return styled(figure, 620)


def _pairs(shown: Picture) -> Any:
    side = len(shown.objectives) - 1
    figure = make_subplots(
        rows=side, cols=side, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.03
    )
    places = [(row, column) for row in range(1, side + 1) for column in range(1, row + 1)]
    for (row, column), (across, up) in zip(places, shown.panels(), strict=True):
        for series in shown.series():
            figure.add_trace(_markers(shown, series, across, up, legend=row == column == 1), row=row, col=column)
        if column == 1:
            figure.update_yaxes(title=_safe(up.title), row=row, col=1)
        if row == side:
            figure.update_xaxes(title=_safe(across.title), row=row, col=column, showticklabels=True)
        if row != column:  # the mirrored panel stays empty
            figure.update_xaxes(visible=False, row=column, col=row)
            figure.update_yaxes(visible=False, row=column, col=row)
    figure = styled(figure, 260 + 240 * side)
    corner = {"x": 1.0, "y": 1.0, "xanchor": "right", "orientation": "v"}
    return figure.update_layout(dragmode="select", legend=corner)


def _parallel(shown: Picture) -> Any:
    """One line per candidate; minimised axes are turned over, so that up is better everywhere."""
    dimensions = []
    for index, objective in enumerate(shown.objectives):
        values = [point.scores[index] for point in shown.points]
        low, high = min(values), max(values)
        beyond = 0.02 * (high - low) or 0.5
        ends = [float(f"{low - beyond:.3g}"), float(f"{high + beyond:.3g}")]
        ends = ends if objective.direction == "maximize" else ends[::-1]
        dimensions.append({"label": _safe(formatting.heading(objective)), "values": values, "range": ends})
    kinds = [0.5 if point.anchor is not None else float(point.on_front) for point in shown.points]
    scale = [[0, FAINT], [0.5, ANCHOR], [1, FRONT]]
    figure = go.Figure(
        go.Parcoords(dimensions=dimensions, line={"color": kinds, "cmin": 0, "cmax": 1, "colorscale": scale})
    )
    dominated = ", grey dominated merges" if shown.dominated else ""
    caption = (
        f"Every candidate, up is better: blue merges on the front, yellow anchors{dominated}. Drag along an axis, or "
        "around points above, to highlight candidates everywhere."
    )
    trials = [point.number for point in shown.points]
    return styled(figure, 380).update_layout(
        margin={"l": 70, "r": 70, "t": 60, "b": 40}, meta={"trials": trials, "kinds": kinds, "caption": caption}
    )


def _markers(shown: Picture, series: Series, across: Axis, up: Axis, *, legend: bool) -> Any:
    points = series.points
    named = any(point.on_front and point.anchor is None for point in points) and not series.hollow
    look = {"color": series.color, "size": series.size, "symbol": series.symbol[1] + ("-open" if series.hollow else "")}
    look["opacity"] = 0.6 if series.color == FAINT else 1.0
    return go.Scatter(
        x=across.values(points),
        y=up.values(points),
        mode="markers+text" if named else "markers",
        name=_safe(series.name),
        legendgroup=_safe(series.name),
        showlegend=legend,
        marker={**look, "line": {"width": 2.5, "color": series.color}} if series.hollow else look,
        text=_labels(shown, points, across, up) if named else None,
        textposition="top right",
        customdata=[point.number for point in points],
        unselected={"marker": {"opacity": 0.12}, "textfont": {"color": "rgba(0,0,0,0)"}},
        textfont={"size": 10},
        error_x=_errors(series, across),
        error_y=_errors(series, up),
        hoverinfo="skip" if series.hollow else "text",
        hovertext=[_hover(shown, point) for point in points],
    )


def _labels(shown: Picture, points: list[Point], across: Axis, up: Axis) -> list[str]:
    """The trials' numbers, without those that would overlap another one; the suggested and the best come first."""
    xs, ys = across.values(points), up.values(points)
    every = (axis.values(list(shown.points)) for axis in (across, up))
    width, height = (max(values) - min(values) or 1.0 for values in every)
    labels, placed = [""] * len(points), list[tuple[float, float]]()
    for index in sorted(range(len(points)), key=lambda one: (not points[one].suggested, points[one].number)):
        x, y = xs[index] / width, ys[index] / height
        if all(abs(x - a) > _NEAR[0] or abs(y - b) > _NEAR[1] for a, b in placed):
            labels[index] = str(points[index].number)
            placed.append((x, y))
    return labels


def _errors(series: Series, axis: Axis) -> dict[str, Any] | None:
    errors = axis.errors(series.points) if series.with_errors else None
    if errors is None:
        return None
    return {"type": "data", "array": errors, "thickness": 0.7, "width": 0, "color": series.color}


def _hover(shown: Picture, point: Point) -> str:
    lines = [formatting.trial(point.number, point.anchor) + (", suggested" if point.suggested else "")]
    lines += [
        f"{formatting.heading(objective)}  {formatting.score(value, error)}"
        for objective, value, error in zip(shown.objectives, point.scores, point.errors, strict=True)
    ]
    coefficients = point.coefficients if len(point.coefficients) <= 160 else point.coefficients[:157] + "..."
    return "<br>".join(_safe(line) for line in (*lines, coefficients))


def _safe(text: str) -> str:
    """Plotly reads some HTML in texts; names are not HTML."""
    return html_text(text, quote=False)


def styled(figure: Any, height: int) -> Any:
    """The look of every figure; colours of text and lines are the page's (``web_page``)."""
    figure.update_layout(
        template="simple_white",
        height=height,
        margin={"l": 70, "r": 30, "t": 30, "b": 60},
        hoverlabel={"align": "left"},
        colorway=PALETTE,
        legend={"orientation": "h", "y": -0.15, "yanchor": "top"},
    )
    figure.update_xaxes(showgrid=True, gridcolor=GRID)
    figure.update_yaxes(showgrid=True, gridcolor=GRID)
    return figure
