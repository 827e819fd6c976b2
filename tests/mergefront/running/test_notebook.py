"""What a notebook shows: how far a search is while it runs, and a study by its front."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import mergefront as mf
from mergefront.notebook import Row, picture_svg
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.scores.objectives import Objective

CELL = """
import mergefront as mf
study = mf.search(
    space=mf.MergeSpace(["a", "b"], method="task_arithmetic"),
    evaluate=lambda recipe: {"one": recipe.params["weight[a]"], "two": recipe.params["weight[b]"]},
    objectives=["one", "two"], sampler="random", evaluations=9, storage="sqlite:///study.db", name="in a <notebook>",
)
study
"""


def weights(recipe: mf.Recipe) -> dict[str, float]:
    first, second = (float(recipe.params[f"weight[{name}]"]) for name in ("a", "b"))
    if first == second == 0:
        raise ValueError("diverged")
    return {"one <b>": first - second**2, "two": second}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> mf.Study:
    """Two objectives, one of them with markup in its name; the base fails."""
    return mf.search(
        space=mf.MergeSpace(["a", "b"], method="task_arithmetic"), evaluate=weights, objectives=["one <b>", "two"],
        sampler="random", evaluations=12, storage=f"sqlite:///{tmp_path_factory.mktemp('notebook')}/study.db",
        name="shown",
    )  # fmt: skip


def test_a_notebook_shows_bar_and_table_while_it_searches_and_the_study_by_its_front(tmp_path: Path) -> None:
    """Executed as Jupyter does, by a kernel of its own; no widgets are needed."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbclient.NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"]["text/html"] for output in book.cells[0].outputs if "text/html" in output.get("data", {})]
    assert len(shown) == 2, "the bar is drawn anew in its place"
    bar, result = shown
    assert "9/9 evaluations" in bar and "hypervolume" in bar and "uniform average" in bar and "now trial" not in bar
    assert result.startswith("<div><b>Study in a &lt;notebook&gt;: 9 of 9 evaluations") and "<svg" in result
    written = [output["text"] for output in book.cells[0].outputs if output.output_type == "stream"]
    assert not any("trial" in text for text in written), "and no lines beside it"


def test_a_study_is_shown_by_its_front_and_markup_of_others_is_text(study: mf.Study) -> None:
    shown = study._repr_html_()
    assert "<b>one" not in shown and "one &lt;b&gt; ↑" in shown
    (picture,) = re.findall(r"<svg.*</svg>", shown)
    marks = [title.text for title in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(marks) == sorted(
        f"trial {one.number}" + (f" ({one.anchor})" if one.anchor else "") for one in study.candidates()
    )
    suggested = study.suggested()
    assert suggested is not None and f"◆ {suggested.number}<" in shown
    for member in study.front():
        mark = "◆ " if member.number == suggested.number else "● " if member.anchor else ""
        assert f">{mark}{member.number}</td>" in shown
    assert len(shown) < 20_000


def test_a_study_without_evaluations_is_shown_too(tmp_path: Path) -> None:
    with pytest.raises(mf.SearchStoppedError):
        mf.search(
            space=mf.MergeSpace(["a", "b"], method="linear"), evaluate=lambda recipe: 1 / 0, objectives=["score"],
            evaluations=8, storage=f"sqlite:///{tmp_path}/study.db", name="none",
        )  # fmt: skip
    none = mf.load_study("none", storage=f"sqlite:///{tmp_path}/study.db")
    assert "of 8 evaluations" in none._repr_html_() and "<svg" not in none._repr_html_()
    assert set(none.to_frame()["state"]) == {"fail"}


def test_the_picture_of_a_long_search_stays_small() -> None:
    objectives = [Objective("one", "maximize"), Objective("two", "maximize")]
    rows = [Row(number, None, (number / 5000, 0.5), (None, None)) for number in range(5000)]
    rows += [Row(5000, None, (2.0, 2.0), (None, None), on_front=True, suggested=True)]
    drawn = picture_svg(objectives, rows)
    assert len(drawn) < 50_000 and "<title>trial 5000<" in drawn and drawn.count("<title>") > 100


def test_the_frame_has_every_trial_with_its_recipe_and_scores(study: mf.Study) -> None:
    pytest.importorskip("pandas")
    frame = study.to_frame()
    assert list(frame.index) == list(range(12)) and frame.index.name == "trial"
    assert list(frame.columns) == [
        "state", "anchor", "on_front", "reason", "method", "weight[a]", "weight[b]",
        "score[one <b>]", "score[two]", "standard_error[one <b>]", "standard_error[two]",
    ]  # fmt: skip
    assert frame.loc[0, "state"] == "fail" and "diverged" in frame.loc[0, "reason"]
    assert math.isnan(frame.loc[0, "score[two]"]) and not frame.loc[0, "on_front"]
    for candidate in study.candidates():
        row = frame.loc[candidate.number]
        assert row["score[two]"] == candidate.scores["two"] and row["weight[a]"] == candidate.params["weight[a]"]
        assert row["anchor"] == candidate.anchor or candidate.anchor is None
    on_front = {candidate.number for candidate in study.front()}
    assert on_front <= set(frame.index[frame["on_front"]])


def test_the_frame_needs_pandas(study: mf.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "pandas", missing)
    with pytest.raises(UserError, match="pip install pandas"):
        study.to_frame()
