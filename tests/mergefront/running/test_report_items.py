"""The report on items of its own: its cost is said first and counted, and whom it scores is chosen."""

from __future__ import annotations

import contextlib
import io
import json
import re
from statistics import median

import pytest
import yaml
from click.testing import CliRunner, Result
from local_study import write_local_study

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.cli.progress import report_progress
from mergefront.cli.session import Session
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.results.report.contents import contents
from mergefront.results.report.page import page
from mergefront.running.report_items import plan_report, report
from mergefront.storage.database import Database


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> mf.Study:
    """A finished search with three merges on its front, in which one task has more report items than search items."""
    file = write_local_study(tmp_path_factory.mktemp("report"), "measured")
    content = yaml.safe_load(file.read_text())
    lines = (file.parent / "sorting.jsonl").read_text().splitlines()
    (file.parent / "few.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (file.parent / "rest.jsonl").write_text("\n".join(lines[3:]) + "\n")
    content["tasks"]["sorting"] |= {"path": "few.jsonl", "report": "rest.jsonl"}
    content["merge"]["space"] = {"weight": [-1, 1]}
    content["objectives"] = ["sorting", "side"]
    file.write_text(yaml.safe_dump(content))
    return mf.run(file, evaluations=11)


@pytest.fixture
def study(searched: mf.Study) -> mf.Study:
    """A copy of it, which has no report yet."""
    return searched.copy(Database(f"sqlite:///{searched.root}/copy{len(list(searched.root.glob('*.db')))}.db"))


def call(study: mf.Study, *arguments: str, log: str = "text") -> Result:
    command = ["--log-format", log, arguments[0], study.name, "--storage", study.database.url, *arguments[1:]]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    return result


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def test_what_a_report_takes_is_said_before_it_starts_by_the_pace_of_the_search(study: mf.Study) -> None:
    """30 minutes of scoring nobody had been told of would follow 12 of searching."""
    plan = plan_report(study)
    rows = study.ledger.evaluations().values()
    sorting, side, merge = (median(row.seconds[part] for row in rows) for part in ("sorting", "side", "merge"))
    assert plan.seconds == pytest.approx(5 * sorting / 3 + 4 * side / 4 + merge)
    assert (plan.items, plan.known, plan.untimed) == (5 + 4 + 4, 0, ["choices"])
    result = call(study, "report")
    anchors = len({anchor.digest for anchor in study.anchors()})
    count = len(plan.wanted)
    assert anchors < count
    first, *after = [line for line in result.stderr.splitlines() if line]
    assert first.startswith(f"Report items: {count - anchors} merges and {anchors} anchors to score on 13 items each")
    searched = sum(row.cost["items"] for row in rows)
    assert f", {13 * count} in all (the search: {searched:.0f}), about " in first
    assert "task choices not counted" in first
    assert f"[{count}/{count}] trial" in result.stderr and f"Scored {count} candidates in" in after[-1]
    assert f", {13 * count} items," in after[-1] and "scored tokens" in after[-1]
    assert plan_report(study).untimed == [], "the first report has timed them"


def test_whom_to_score_is_chosen_and_only_what_is_new_is_scored(study: mf.Study) -> None:
    anchors = {anchor.digest for anchor in study.anchors()}
    front = [candidate for candidate in study.front() if candidate.digest not in anchors]
    assert len(front) > 1
    call(study, "report", "--trials", str(front[0].number))
    assert set(study.ledger.evaluations("report")) == anchors | {front[0].digest}
    favourite = study.preferred({"sorting": 1})
    call(study, "report", "--prefer", "sorting=1")
    assert set(study.ledger.evaluations("report")) == anchors | {front[0].digest, favourite.digest}
    left = {one.digest for one in front} - set(study.ledger.evaluations("report"))
    result = call(study, "report")
    assert f"{len(left)} merges to score ({len(anchors) + len(front) - len(left)} have been scored before)" in said(
        result
    )
    assert "have been scored on the report items before" in said(call(study, "report", "--distinct"))
    off = next(one.number for one in study.candidates() if one.digest not in {each.digest for each in study.front()})
    with pytest.raises(AssertionError, match=f"trial {off} is not on the front of study 'measured'; on it are: "):
        call(study, "report", "--trials", str(off))


def test_a_choice_of_the_distinct_scores_no_other_merge(study: mf.Study) -> None:
    call(study, "report", "--distinct")
    wanted = {one.digest for one in (*study.anchors(), *study.distinct_front())}
    assert set(study.ledger.evaluations("report")) == wanted


def test_its_cost_is_counted_beside_the_searchs(study: mf.Study) -> None:
    assert json.loads(call(study, "status", "--json").stdout)["report"]["scored"] == 0
    (one,) = [candidate for candidate in study.front() if candidate.anchor is None][:1]
    call(study, "report", "--trials", str(one.number))
    rows = study.ledger.evaluations("report").values()
    facts = json.loads(call(study, "status", "--json").stdout)
    assert facts["report"]["scored"] == len(rows) and facts["report"]["left"] == len(plan_report(study).wanted) > 0
    assert facts["report"]["seconds"] == pytest.approx(sum(row.seconds["total"] for row in rows))
    tokens = sum(row.cost["scored_tokens"] for row in rows)
    assert facts["report"]["spent"]["scored_tokens"] == tokens and facts["report"]["spent"]["items"] == 13 * len(rows)
    assert f"report items  {len(rows)} candidates scored in" in call(study, "status").stdout
    cost = page(contents(study))
    assert f"<td>items answered</td><td>77 of 77 (100 %)</td><td>{13 * len(rows)}</td>" in cost
    assert f"<td>{tokens:,.0f} </td></tr>" in cost[cost.index("<td>scored tokens</td>") :].split("\n")[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_programs_get_an_event_for_each(study: mf.Study) -> None:
    plan = plan_report(study)
    candidate, result = plan.wanted[0], Evaluation({"sorting": 1.0}, cost={"items": 13.0})
    with contextlib.redirect_stderr(Terminal()) as screen:
        session = Session()
        with report_progress(session, study, plan) as on_scored:
            on_scored(candidate, result)
            on_scored(plan.wanted[1], EvaluationError("out of memory"))
            assert f"1 of {len(plan.wanted)} candidates are scored and kept" in str(session.resume_hint())
    shown = screen.getvalue()
    assert f"2/{len(plan.wanted)} candidates" in shown and "━" in shown and " left" in shown
    assert f"trial {plan.wanted[1].number}" in shown and "failed: out of memory" in shown
    assert session.resume_hint() is None
    events = [json.loads(line) for line in call(study, "report", log="json").stderr.splitlines()]
    scored = [event for event in events if event.get("event") == "report"]
    assert [event["trial"] for event in scored] == [one.number for one in plan.wanted]
    assert scored[-1]["done"] == scored[-1]["total"] == len(plan.wanted)


def test_what_has_no_report_items_is_refused(storage: str) -> None:
    with pytest.raises(UserError, match="function of its own, which has no report items"):
        report(mf.load_study("skills", storage=storage))


def test_items_that_have_moved_are_named_with_the_way_to_find_them(study: mf.Study) -> None:
    items, elsewhere = study.root / "rest.jsonl", study.root / "moved.jsonl"
    items.rename(elsewhere)
    try:
        with pytest.raises(UserError, match=r"rest\.jsonl: it is gone, .* name the folder that holds it with --root"):
            plan_report(study)
    finally:
        elsewhere.rename(items)


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_scored(study: mf.Study) -> None:
    for out in (study.root / "gone/report.html", study.root / "report.pdf", study.root / "one.html"):
        (study.root / "one.html").mkdir(exist_ok=True)
        command = ["report", study.name, "--storage", study.database.url, "--out", str(out)]
        refused = CliRunner().invoke(cli, command)
        assert refused.exit_code == 2 and str(out) in " ".join(refused.stderr.split()), refused.output
        assert study.ledger.evaluations("report") == {}


def test_what_a_comparison_scored_is_no_cost_of_the_search(study: mf.Study) -> None:
    def answered() -> list[str]:
        return re.findall(r"items answered.*?</tr>", page(contents(study)), re.DOTALL)

    before, one = answered(), study.candidates()[-1]
    other = study.space.recipe(dict.fromkeys(one.params, 0.123))
    study.ledger.record(other, Evaluation(one.scores, seconds={"score": 1e6}, cost={"items": 1e6}), "search")
    assert answered() == before != []
