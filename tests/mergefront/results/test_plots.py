"""Plots show what the study holds: every candidate once, the front's border, no label on top of another."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.plots.front import save_front
from mergefront.results.plots.picture import Picture, Point, picture


def point(number: int, *scores: float, anchor: str | None = None, on_front: bool = True) -> Point:
    return Point(number, scores, (0.01,) * len(scores), anchor, on_front, False, "")


def test_picture_holds_every_candidate_once(storage: str) -> None:
    study = mf.load_study("skills", storage=storage)
    shown = picture(study)
    assert [p.anchor for p in shown.anchors] == [candidate.anchor for candidate in study.anchors()]
    numbers = [p.number for p in shown.points]
    assert len(numbers) == len(set(numbers))
    assert {p.number for p in shown.points if p.on_front} >= {candidate.number for candidate in study.front()}
    suggested = study.suggested()
    assert suggested is not None and [p.number for p in shown.points if p.suggested] == [suggested.number]
    assert len(shown.anchors) + len(shown.front_merges) + len(shown.dominated) == len(shown.points)


def test_staircase_is_the_border_of_what_is_dominated() -> None:
    maximise, minimise = Objective("a"), Objective("b", "minimize")
    points = (point(0, 1.0, 3.0), point(1, 3.0, 5.0), point(2, 2.0, 9.0, on_front=False))
    shown = Picture("s", (maximise, minimise), points)
    # b is minimised: from the best a (3, 5) along its own b to a = 1, then to the better b there.
    assert shown.border()[1] == [(3.0, 5.0), (1.0, 5.0), (1.0, 3.0)]


def test_the_border_leaves_out_a_member_that_other_items_say_is_dominated() -> None:
    points = (point(0, 1.0, 3.0), point(1, 3.0, 1.0), point(2, 0.9, 0.9))
    assert Picture("s", (Objective("a"), Objective("b")), points).border()[1] == [(3.0, 1.0), (1.0, 1.0), (1.0, 3.0)]


def test_with_one_objective_the_border_is_the_best_so_far() -> None:
    points = tuple(point(number, score) for number, score in ((2, 4.0), (0, 5.0), (1, 7.0)))
    shown = Picture("s", (Objective("a", "minimize"),), points)
    assert shown.border() == ("best so far", [(0, 5.0), (1, 5.0), (1, 5.0), (2, 5.0), (2, 4.0)])


@pytest.mark.parametrize("name", ["one", "skills", "three"])
def test_png_and_html_are_written_for_any_number_of_objectives(name: str, storage: str, tmp_path: Path) -> None:
    study = mf.load_study(name, storage=storage)
    png = save_front(study, tmp_path / "front.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000
    page = save_front(study, tmp_path / "front.html").read_text(encoding="utf-8")
    assert "expert maths" in page and "<script src=" not in page.replace("'", '"')


def test_trial_labels_cover_neither_each_other_nor_leave_the_panel() -> None:
    from mergefront.results.plots.png import draw

    crowd = tuple(point(n, 0.5 + 0.002 * n, 0.5 - 0.002 * n) for n in range(40))
    far = (point(40, 0.0, 1.0), point(41, 1.0, 0.0), point(42, 0.0, 0.0, anchor="base", on_front=False))
    figure = draw(Picture("crowded", (Objective("a"), Objective("b")), (*crowd, *far)))
    axes = figure.axes[0]
    frame = axes.get_window_extent()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer).shrunk(0.8, 0.6) for text in axes.texts]
    assert 2 <= len(boxes) < len(crowd)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_names_are_text_in_html_never_markup(tmp_path: Path) -> None:
    from mergefront.results.plots.html import write_html

    hostile = "<img src=x onerror=alert(1)>"
    shown = Picture(hostile, (Objective(hostile), Objective("b"), Objective("c")),
                    (point(0, 1.0, 2.0, 3.0, anchor=hostile), point(1, 2.0, 1.0, 1.0)))  # fmt: skip
    write_html(shown, tmp_path / "front.html")
    assert hostile not in (tmp_path / "front.html").read_text(encoding="utf-8")


def test_plots_refuse_what_they_cannot_draw(storage: str, tmp_path: Path) -> None:
    study = mf.load_study("skills", storage=storage)
    for path, reason in ((tmp_path / "front.pdf", "must end in"), (tmp_path / "none" / "front.png", "does not exist")):
        with pytest.raises(UserError, match=reason):
            save_front(study, path)
