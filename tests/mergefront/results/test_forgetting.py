"""What a merge has lost, against the base model, of tasks that the search does not see."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest
import yaml
from click.testing import CliRunner
from local_study import write_local_study

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.formatting import number
from mergefront.results.report.contents import contents
from mergefront.results.report.page import page
from mergefront.running.report_items import report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> mf.Study:
    return mf.run(write_local_study(tmp_path_factory.mktemp("forgetting"), "forgetting"))


def test_the_report_says_what_each_merge_lost_of_every_side_task(study: mf.Study) -> None:
    """A merge that has unlearned what nobody searched for would be published as the best."""
    assert all(set(candidate.scores) == {"sorting", "delta_l1"} for candidate in study.candidates()), (
        "the search pays for no more"
    )
    report(study)
    shown = contents(study)
    said = page(shown)
    section = said[said.index("Tasks outside the search") :]
    rows = re.findall(r"<tr>(.*?)</tr>", section[: section.index("</table>")], flags=re.DOTALL)
    cells = [[unescape(re.sub(r"<.*?>", "", one)) for one in re.findall(r"<td.*?>(.*?)</td>", row)] for row in rows]
    base = next(anchor for anchor in shown.anchors if anchor.anchor == "base")
    of_base = study.ledger.find(base.recipe, "report")
    candidates = [*shown.front, *shown.anchors]
    assert sum(row[:1] == ["base, the reference"] for row in cells) == 1, "it has lost and gained nothing"
    assert of_base is not None and len(candidates) == len([row for row in cells if row]) > 3
    verbs = set()
    for candidate, (_, side, choices) in zip(candidates, filter(None, cells), strict=True):
        row = study.ledger.find(candidate.recipe, "report")
        assert row is not None
        if candidate.number == base.number:
            assert not re.search("lost|gained", side + choices)
            continue
        for cell, lost in (
            (side, row.scores["side"] - of_base.scores["side"]),  # a loss that grew
            (choices, of_base.scores["choices"] - row.scores["choices"]),  # an accuracy that fell
        ):
            verb = "lost" if lost > 0 else "gained" if lost else "unchanged"
            assert cell.endswith(f"{verb} {number(abs(lost))}" if lost else ", unchanged"), (candidate, cell)
            verbs.add(verb)
    assert verbs >= {"lost", "gained"}


def test_report_as_json_has_the_scores_on_the_report_items(study: mf.Study) -> None:
    said = CliRunner().invoke(cli, ["report", study.name, "--storage", study.database.url, "--json"])
    found = json.loads(said.stdout)
    assert found["study"] == study.name and len(found["report"]) >= len(study.anchors())
    for row in found["report"]:
        candidate = next(one for one in study.candidates() if one.number == row["trial"])
        scored = study.ledger.find(candidate.recipe, "report")
        assert scored is not None and row["scores"] == pytest.approx(dict(scored.scores))
        assert row["scores"].keys() >= {"sorting", "side", "choices"}


def test_a_front_of_anchors_alone_is_reported_as_such_on_the_report_items(study: mf.Study) -> None:
    """Who found nothing would otherwise read the search items' scores, and not that nothing was found."""
    folder = study.root
    content = yaml.safe_load((folder / "forgetting.yaml").read_text()) | {
        "study": "nothing",
        "objectives": ["delta_l1"],
    }
    path = folder / "nothing.yaml"
    path.write_text(yaml.safe_dump(content))
    nothing = mf.run(path)
    assert contents(nothing).split == "search"
    assert report(nothing) == len(nothing.anchors()) > 3
    shown = contents(nothing)
    assert (shown.judged, shown.split, shown.front) == (None, "report", [])
    assert set(shown.rows) == {anchor.number for anchor in nothing.anchors()}
    said = page(shown)
    tried = len(nothing.candidates()) - len(nothing.anchors())
    assert (
        f"No merge beats the best anchor, base: each of the {tried} merges tried scores no better on the search" in said
    )
    assert "On the report items" in said and "Tasks outside the search" in said and "optimised on" not in said
    result = CliRunner().invoke(cli, ["report", "nothing", "--storage", nothing.database.url])
    assert "No merge beats the best anchor" in " ".join(result.stdout.split())
    assert "On the report items, which the search never saw" in result.stdout
