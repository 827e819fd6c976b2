"""What a notebook shows of a study: a small picture of the front as inline SVG, a table, a bar while it is searched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mergefront import formatting
from mergefront.formatting import html_text
from mergefront.optimizer.scores.objectives import Objective

FRONT, FAINT, SUGGESTED, ANCHOR = "#0072b2", "#c3c8ce", "#d55e00", "#e69f00"
"""Colours that everyone tells apart (Okabe and Ito's), on a light and on a dark page."""
_WIDTH, _HEIGHT = 250, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 14, 8, 40
_MOST_PANELS, _MOST_ROWS, _MOST_OTHERS = 3, 12, 200
_CELL = "padding: 2px 10px; text-align: {side}; white-space: nowrap;"


@dataclass(frozen=True)
class Row:
    """An evaluated candidate; ``scores`` and ``errors`` (None where unknown) follow the objectives' order."""

    number: int
    anchor: str | None
    scores: tuple[float, ...]
    errors: tuple[float | None, ...]
    on_front: bool = False
    suggested: bool = False


def study_html(title: str, objectives: Sequence[Objective], rows: Sequence[Row]) -> str:
    """Title, picture, and the table of the front and the anchors."""
    best = "the best merge" if len(objectives) == 1 else "merge on the front"
    legend = " ".join(
        f'<span style="color: {colour}">{sign}</span> {meaning} &nbsp;'
        for colour, sign, meaning in (
            (FRONT, "●", best),
            (FAINT, "●", "other merge"),
            (ANCHOR, "■", "anchor"),
            (SUGGESTED, "○", "suggested"),
        )
    )
    picture = f"{picture_svg(objectives, rows)}<div>{legend}</div>{front_table(objectives, rows)}" if rows else ""
    return f"<div><b>{html_text(title)}</b>{picture}</div>"


def progress_html(done: int, budget: int, lines: Iterable[str], front: str) -> str:
    """How far a search is, what there is to say of it, and the front so far (HTML)."""
    said = "".join(f"<div>{html_text(line)}</div>" for line in lines if line)
    share = min(1.0, done / budget)
    bar = (
        f'<div style="width: 320px; height: 10px; background: {FAINT}; display: inline-block">'
        f'<div style="width: {320 * share:.0f}px; height: 10px; background: {FRONT}"></div></div>'
    )
    return f"<div><b>{done}/{budget} evaluations</b> {bar}{said}{front}</div>"


def front_table(objectives: Sequence[Objective], rows: Sequence[Row]) -> str:
    """The front's members, best in the first objective first, and the anchors; ◆ and ● as ``mergefront front`` has it.

    Of one objective the best is the front. Long tables are cut, and say so.
    """
    merges = [row for row in rows if row.on_front and row.anchor is None]
    merges.sort(key=lambda row: -objectives[0].sign * row.scores[0])
    anchors = [row for row in rows if row.anchor is not None]
    shown = merges[:_MOST_ROWS]
    shown += [row for row in merges[_MOST_ROWS:] if row.suggested]
    head = "".join(
        f'<th style="{_CELL.format(side="right")}">{html_text(text)}</th>'
        for text in ("trial", *(formatting.heading(one) for one in objectives), "")
    )
    body = "".join(_table_row(row) for row in [*shown, *anchors])
    more = len(merges) - len(shown)
    left = f"<div>… and {more} more on the front; study.front() has all</div>" if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{left}"


def _table_row(row: Row) -> str:
    mark = "◆ " if row.suggested else "● " if row.on_front and row.anchor is not None else ""
    scores = (formatting.score(*pair) for pair in zip(row.scores, row.errors, strict=True))
    left, right = (f'<td style="{_CELL.format(side=side)}">' for side in ("left", "right"))
    cells = "".join(f"{right}{text}</td>" for text in (f"{mark}{row.number}", *scores))
    note = row.anchor or ("suggested" if row.suggested else "")
    return f"<tr>{cells}{left}{html_text(note)}</td></tr>"


def picture_svg(objectives: Sequence[Objective], rows: Sequence[Row]) -> str:
    """Each pair of objectives, three pairs at most; of one objective the scores by trial.

    Of many merges that are neither on the front nor suggested some stand for all, so that a notebook stays small.
    """
    others = [row for row in rows if not (row.on_front or row.anchor or row.suggested)]
    left_out = {row.number for row in others} - {row.number for row in others[:: 1 + len(others) // _MOST_OTHERS]}
    rows = [row for row in rows if row.number not in left_out]
    pairs: list[tuple[int | None, int]] = [*combinations(range(len(objectives)), 2)] or [(None, 0)]
    panels = [
        f'<g transform="translate({place * _WIDTH} 0)">{_panel(objectives, rows, across, up)}</g>'
        for place, (across, up) in enumerate(pairs[:_MOST_PANELS])
    ]
    width = _WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" viewBox="0 0 {width} {_HEIGHT}" '
        f'style="display: block; max-width: 100%" font-family="sans-serif" font-size="10" fill="currentColor">'
        f"{''.join(panels)}</svg>"
    )


def _panel(objectives: Sequence[Objective], rows: Sequence[Row], across: int | None, up: int) -> str:
    xs = [float(row.number if across is None else row.scores[across]) for row in rows]
    ys = [row.scores[up] for row in rows]
    low_x, high_x = _span(xs)
    low_y, high_y = _span(ys)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.5"/>']
    for value, place, anchor in ((low_x, _LEFT, "start"), (high_x, right, "end")):
        text = f"{value:.0f}" if across is None else formatting.number(value)
        parts.append(f'<text x="{place}" y="{bottom + 13}" text-anchor="{anchor}">{text}</text>')
    for value, place in ((low_y, bottom), (high_y, _TOP + 8)):
        parts.append(f'<text x="{_LEFT - 4}" y="{place}" text-anchor="end">{formatting.number(value)}</text>')
    middle = (_TOP + bottom) / 2
    name = "trial" if across is None else formatting.heading(objectives[across])
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{bottom + 28}" text-anchor="middle">{html_text(name)}</text>')
    parts.append(
        f'<text x="10" y="{middle}" text-anchor="middle" transform="rotate(-90 10 {middle})">'
        f"{html_text(formatting.heading(objectives[up]))}</text>"
    )
    # What matters lies on top.
    for row, x, y in sorted(zip(rows, xs, ys, strict=True), key=lambda one: (one[0].on_front, one[0].suggested)):
        at_x = _LEFT + 6 + (right - _LEFT - 12) * (x - low_x) / (high_x - low_x)
        at_y = bottom - 6 - (bottom - _TOP - 12) * (y - low_y) / (high_y - low_y)
        parts.append(_mark(row, at_x, at_y))
    return "".join(parts)


def _mark(row: Row, x: float, y: float) -> str:
    title = f"<title>{html_text(formatting.trial(row.number, row.anchor))}</title>"
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="none" stroke="{SUGGESTED}" stroke-width="2"/>'
    if row.anchor is not None:
        mark = f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" fill="{ANCHOR}">{title}</rect>'
    else:
        look = f'r="4" fill="{FRONT}"' if row.on_front else f'r="3" fill="{FAINT}"'
        mark = f'<circle cx="{x:.1f}" cy="{y:.1f}" {look}>{title}</circle>'
    return mark + ring * row.suggested


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
