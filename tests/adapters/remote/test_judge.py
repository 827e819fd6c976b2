"""A judge over HTTP: verdicts by a known rule, nothing guessed, nothing paid for twice, no favour for the first."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from local_study import write_local_study

import mergefront as mf
from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import Generation, GenerationRequest
from mergefront.adapters.remote.http.cache import MemoryCache
from mergefront.adapters.remote.judge import connected_judges
from mergefront.adapters.remote.settings import JudgeSection
from mergefront.adapters.tasks.judging.options import JudgeOptions
from mergefront.adapters.tasks.judging.prompts import read_choice, read_score
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.cli.application import cli
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.outcomes import JUDGED_ALIKE, JUDGED_TWICE
from mergefront.results.report.contents import contents
from mergefront.results.report.page import page
from mergefront.running.report_items import report
from mergefront.study.check import check_study
from mergefront.study.evaluators import server_settings

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, Served, as_json, serve

GRADE = {"by": "critic", "rubric": "Longer is better.", "range": [1, 5]}
COMPARE = {"by": "critic", "rubric": "Longer is better.", "against": "base"}
Rule = Callable[[str, int], Any]
"""What the judge says to a prompt, and to how many requests it said something before."""


def blocks(prompt: str) -> dict[str, str]:
    """The parts of a request, by their titles."""
    found = re.findall(
        r"\[(Rubric|Task|Accepted answers|Answer|Answer A|Answer B)\]\n(.*?)(?=\n\n|\Z)", prompt, re.DOTALL
    )
    return dict(found)


def by_length(prompt: str, _: int) -> str:
    """Grades the length of an answer; of two it favours the first unless the second is three letters longer."""
    parts = blocks(prompt)
    if "Answer" in parts:
        return f"It is so long.\n\nscore: {min(5, len(parts['Answer']))}"
    longer = len(parts["Answer B"]) > len(parts["Answer A"]) + 3
    return f"I looked at both.\n**better: {'B' if longer else 'A'}**"


@contextmanager
def judge(rule: Rule = by_length) -> Iterator[Served]:
    def answer(request: Received) -> Answer:
        said = rule(request.json["messages"][-1]["content"], len(server.received) - 1)
        if isinstance(said, Answer):
            return said
        message = said if isinstance(said, dict) else {"content": said}
        usage = {"prompt_tokens": 50, "completion_tokens": 10}
        return as_json({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})

    with serve(answer) as server:
        yield server


class Writer:
    """Writes what a prompt says after its colon."""

    def generate(self, requests: list[GenerationRequest]) -> list[Generation]:
        return [
            Generation("", 0, "stop", unanswered="content filter")
            if one.prompt == "none"
            else Generation(str(one.prompt).partition(":")[2], 1, "stop")
            for one in requests
        ]


class Base:
    """The anchor: as a backend, and as the model that it applies."""

    applied = 0
    delta_l1 = None
    seconds = 0.0

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    def apply(self, recipe: Recipe) -> Base:
        self.applied += 1
        return self

    def __enter__(self) -> Base:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def generate(self, requests: list[GenerationRequest]) -> list[Generation]:
        return [Generation(self.texts[str(one.prompt)], 1, "stop") for one in requests]


ANCHORS = {"base": Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 0.0}, "base")}


def scored(
    folder: Path,
    url: str,
    prompts: list[str],
    judged: dict[str, Any],
    cache: Any = None,
    base: dict[str, str] | None = None,
    **section: Any,
) -> tuple[dict[str, float], CountedModel, Base]:
    """The scores of prompts, in the order of the items."""
    (folder / "items.jsonl").write_text("\n".join(json.dumps({"prompt": one}) for one in prompts))
    entry = {"type": "jsonl", "path": "items.jsonl", "metric": "judge", "report_fraction": 0}
    task = build_task("t", {**entry, "judge": judged, "max_new_tokens": 9, "stop": []}, folder)
    made = JudgeSection(url=url, model="critic-1", longest_wait=0.02, **section)
    kept = MemoryCache() if cache is None else cache
    model, backend = CountedModel(Writer()), Base(base or {})  # type: ignore[arg-type]
    with connected_judges([task], {"critic": made}, ANCHORS, folder, kept, 0, "study") as (tasks, before):
        before(backend, ["t"], "search")
        items = tasks[0].items("search")
        scores = tasks[0].score(model, items).scores
    return dict(zip([item.prompt for item in items], scores, strict=True)), model, backend


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Well.\nscore: 3", 0.5),
        ("**Score: 5**\n", 1.0),
        ("score: 1.", 0.0),
        ('{"score": 2}', 0.25),
        ('Reasons.\n{"why": "so", "score": 4}', 0.75),
        ("score: 6", None),
        ("score: 3/5", None),
        ("score: 3\nThat is my verdict.", None),
        ("I give it a 4.", None),
        ("score: four", None),
        ('{"score": "high"}', None),
        ('{"score": true}', None),
        ("", None),
    ],
)
def test_a_verdict_is_the_last_line_or_none(text: str, score: float | None) -> None:
    assert read_score(text, JudgeOptions(**{**GRADE, "range": (1, 5)})) == score


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("better: A", 1.0),
        ("so\nBetter: b", 0.0),
        ('{"better": "tie"}', 0.5),
        ("A is better", None),
        ("better: C", None),
    ],
)
def test_a_choice_is_a_b_or_a_tie(text: str, choice: float | None) -> None:
    assert read_choice(text) == choice


def test_answers_are_graded_in_the_range_and_no_verdict_is_paid_for_twice(tmp_path: Path) -> None:
    cache = MemoryCache()
    with judge() as server:
        found, _, _ = scored(tmp_path, server.url, ["a:12345", "b:1", "c:", "none"], GRADE, cache)
        assert found == {"a:12345": 1.0, "b:1": 0.0, "c:": 0.0, "none": 0.0}
        asked = len(server.received)
        assert {one.json["temperature"] for one in server.received} == {0}
        assert all("Longer is better." in one.json["messages"][-1]["content"] for one in server.received)
        assert scored(tmp_path, server.url, ["a:12345", "b:1", "c:", "none"], GRADE, cache)[0] == found
        assert len(server.received) == asked


def test_an_eighth_of_the_answers_is_judged_twice(tmp_path: Path) -> None:
    """A judge that says now this, now that measures nothing; the report has to say so."""

    def moody(prompt: str, number: int) -> str:
        return f"score: {1 + (number >= 40) * 3}"

    prompts = [f"{n}:answer {n}" for n in range(40)]
    for rule, alike in ((by_length, 5), (moody, 0)):
        with judge(rule) as server:
            _, model, _ = scored(tmp_path, server.url, prompts, GRADE, concurrency=1 if rule is moody else 8)
            twice = len(server.received) - 40
        counts = model.take_outcomes()
        assert twice == counts[JUDGED_TWICE] == 5
        assert counts[JUDGED_ALIKE] == alike


def test_a_favour_for_the_first_answer_cancels(tmp_path: Path) -> None:
    base = {"a:12345678": "1", "b:12": "1", "c:1": "12345678", "d:same": "same", "e:": "", "f:": "x"}
    cache = MemoryCache()
    with judge() as server:
        found, _, backend = scored(tmp_path, server.url, list(base), COMPARE, cache, base)
        assert found == {"a:12345678": 1.0, "b:12": 0.5, "c:1": 0.0, "d:same": 0.5, "e:": 0.5, "f:": 0.0}
        orders = [
            tuple(blocks(one.json["messages"][-1]["content"])[key] for key in ("Answer A", "Answer B"))
            for one in server.received
        ]
        assert {("12", "1"), ("1", "12")} <= set(orders), "both orders"
        assert not any("same" in pair for pair in orders), "an answer that is the anchor's own is a tie"
        again, _, second = scored(tmp_path, server.url, list(base), COMPARE, cache, base)
        assert again == found and (backend.applied, second.applied) == (1, 0), "the anchor answers once"


def test_what_cannot_be_read_is_asked_again_in_other_words_and_then_fails_the_candidate(tmp_path: Path) -> None:
    def learns(prompt: str, _: int) -> Any:
        return by_length(prompt, 0) if "(Request 3.)" in prompt else {"content": None, "refusal": "I may not."}

    with judge(learns) as server:
        assert scored(tmp_path, server.url, ["a:12345"], GRADE)[0] == {"a:12345": 1.0}
    with judge(lambda prompt, _: "I would say seven.") as server:
        with pytest.raises(
            EvaluationError, match=r"no usable verdict on 2 of 2 answers in 3 attempts.*say seven"
        ) as caught:
            scored(tmp_path, server.url, ["a:1", "b:2"], GRADE)
        assert "\n" not in str(caught.value) and len(server.received) == 6


def test_a_conversation_is_shown_turn_by_turn(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": text} for role, text in (("user", "Hi."), ("assistant", "Yes?"), ("user", "2+2"))
    ]
    (tmp_path / "items.jsonl").write_text(json.dumps({"messages": turns, "answer": "4"}))
    entry = {"type": "jsonl", "path": "items.jsonl", "metric": "judge", "report_fraction": 0, "judge": GRADE}
    task = build_task("t", {**entry, "chat": {"system": "Be brief."}}, tmp_path)

    class Four:
        def generate(self, requests: list[GenerationRequest]) -> list[Generation]:
            return [Generation("four", 1, "stop") for _ in requests]

    with judge() as server:
        made = JudgeSection(url=server.url, model="critic-1")
        with connected_judges([task], {"critic": made}, ANCHORS, tmp_path, MemoryCache(), 0, "study") as (tasks, _):
            assert tasks[0].score(CountedModel(Four()), tasks[0].items("search")).scores == (0.75,)  # type: ignore[arg-type]
        said = server.received[0].json["messages"][-1]["content"]
    assert "system: Be brief.\n\nuser: Hi.\n\nassistant: Yes?\n\nuser: 2+2" in said
    assert "[Accepted answers]\n4" in said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Answer(429, b"slow down"), "status 429"),
        (Answer(200, b"<html>no</html>"), "web page"),
        (Answer(200, b'{"choices": [{"message": {"content": "score: 3"}}]}', seconds_per_byte=0.2), "no answer within"),
        (Answer(400, b'{"error": "unknown model"}'), "unknown model"),
    ],
)
def test_faults_of_the_server_are_waited_out_or_said(fault: Answer, said: str, tmp_path: Path) -> None:
    def recovers(prompt: str, number: int) -> Any:
        return fault if number == 0 else by_length(prompt, 0)

    with judge(recovers) as server:
        if fault.status != 400:
            assert scored(tmp_path, server.url, ["a:12345"], GRADE, timeout=1.0)[0] == {"a:12345": 1.0}
    with judge(lambda prompt, _: fault) as server, pytest.raises(EvaluationError, match=f"the judge: .*{said}"):
        scored(tmp_path, server.url, ["a:1"], GRADE, timeout=0.3, attempts=2)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"judge": {"by": "critic", "rubric": "r"}}, "either a range, such as [1, 10], or against"),
        ({"judge": {**GRADE, "range": [5, 1]}}, "begin with the worst score"),
        ({"judge": {**GRADE, "rubrik": "x"}}, "rubrik"),
        ({}, "has no defaults for judge and max_new_tokens and stop"),
    ],
)
def test_a_judge_that_is_not_told_enough_is_refused(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    told = {"max_new_tokens": 9, "stop": []} if entry else {}
    problems = problems_of({"type": "jsonl", "path": "items.jsonl", "metric": "judge", **told, **entry}, tmp_path)
    assert any(said in problem for problem in problems), problems


def judged_study(folder: Path, url: str, name: str = "judged", **section: Any) -> Path:
    """A local study of answers that are graded, and compared with the base's."""
    path = write_local_study(folder, name)
    content = yaml.safe_load(path.read_text())
    task = {"type": "jsonl", "path": "side.jsonl", "metric": "judge", "max_new_tokens": 6, "stop": ["?"]}
    content["tasks"] = {"graded": {**task, "judge": GRADE}, "compared": {**task, "judge": COMPARE}}
    content["objectives"] = ["graded", "compared"]
    content["judges"] = {"critic": {"url": url, "model": "critic-1", "api_key_env": "CRITIC_KEY", **section}}
    content = json.loads(json.dumps(content))  # lists that are shared would become aliases
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.long
def test_a_study_is_judged_resumed_to_the_digit_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRITIC_KEY", "secret-key-of-the-critic")
    with judge() as server:
        path = judged_study(tmp_path, server.url)
        checked = check_study(path)
        assert checked.problems == []
        (said,) = [note for note in checked.notes if note.startswith("judge critic")]
        assert re.search(r"\(critic-1\) gives verdicts; of (\d+) answers that it judged twice it judged \1 alike", said)
        study = mf.run(path, evaluations=4)
        scores = [dict(one.scores) for one in study.candidates()]
        assert scores[0]["compared"] == 0.5, "the base ties with itself"
        assert check_study(path).problems == [], "what it says before a search is kept from now on"
        asked = len(server.received)
        assert {one.headers["Authorization"] for one in server.received} == {"Bearer secret-key-of-the-critic"}
        other = judged_study(tmp_path, server.url, "again")
        assert [dict(one.scores) for one in mf.run(other, evaluations=4).candidates()] == scores
        assert len(server.received) == asked, "verdicts are kept by content"
        longer = mf.resume("judged", storage=study.database.url, evaluations=6)
        assert [dict(one.scores) for one in longer.candidates()][:4] == scores
        report(longer)
        assert "the judge agreed with itself" in page(contents(longer))
        status = CliRunner().invoke(cli, ["status", "judged", "--storage", study.database.url]).output
        assert "the judge agreed with itself on" in " ".join(status.split())

        text = path.read_text()
        path.write_text(text.replace("Longer is better", "Shorter is better"))
        with pytest.raises(UserError, match=r"evaluator.tasks.compared.judge.rubric: was \"Longer"):
            mf.run(path)
        path.write_text(text.replace("critic-1", "critic-2"))
        with pytest.raises(UserError, match=r"evaluator\.judges.critic.model: was .critic-1"):
            mf.run(path)
        path.write_text(text.replace("api_key_env", "timeout: 60\n    api_key_env"))
        assert check_study(path).problems == [], "how a judge is reached may change"
    dump = "\n".join(sqlite3.connect(tmp_path / "mergefront.db").iterdump())
    assert "secret-key" not in dump


def test_a_budget_of_verdicts_stops_the_search(tmp_path: Path) -> None:
    with judge() as server:
        path = judged_study(tmp_path, server.url)
        path.write_text(path.read_text().replace("api_key_env: CRITIC_KEY", "budget: {requests: 19}"))
        assert check_study(path).problems == []
        said = CliRunner().invoke(cli, ["run", str(path)]).output
        assert "raise judges.critic.budget.requests" in " ".join(said.split())
        assert len(server.received) == 18 + 18 + 19, "two looks at the judge, which take 18 verdicts, and the search"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("by: critic", "by: critik"), "tasks.graded: judge.by is 'critik'; name one of 'judges' .*critic"),
        (("against: base", "against: expert on"), "judge.against is 'expert on'; name an anchor .*expert one"),
        (("model: critic-1", "modle: critic-1"), "judges.critic.*modle"),
    ],
)
def test_a_judge_that_is_not_there_is_a_line_of_check(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    with judge() as server:
        path = judged_study(tmp_path, server.url)
        text = path.read_text().replace("    api_key_env: CRITIC_KEY\n", "")
        path.write_text(text.replace(*change))
        problems = check_study(path).problems
        assert any(re.search(said, problem) for problem in problems), problems
        assert not server.received


def test_a_judge_without_verdicts_is_found_out_by_check(tmp_path: Path) -> None:
    with judge(lambda prompt, _: "Nice.") as server:
        path = judged_study(tmp_path, server.url)
        path.write_text(path.read_text().replace("    api_key_env: CRITIC_KEY\n", ""))
        (problem,) = check_study(path).problems
        assert problem.startswith("judges.critic: the judge gave no usable verdict on 3 of 3 answers")


def test_a_study_on_a_server_has_a_judge_too(tmp_path: Path) -> None:
    """How a judge is reached stands beside how the backend is, and neither reads the other's."""

    def writes(prompt: str, number: int) -> str:
        return by_length(prompt, number) if "[Rubric]" in prompt else "An answer."

    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"prompt": f"Question {n}?"}) + "\n" for n in range(4)))
    task = {"type": "jsonl", "path": "items.jsonl", "metric": "judge", "chat": True, "judge": GRADE}
    with judge(writes) as server:
        content = {
            "study": "remote",
            "merge": {"method": "linear", "models": {"one": "m1", "two": "m2"}},
            "backend": {
                "type": "ensemble",
                "members": {
                    name: {"url": server.url, "model": model, "mode": "chat"}
                    for name, model in [("one", "m1"), ("two", "m2")]
                },
            },
            "tasks": {"graded": task},
            "judges": {"critic": {"url": server.url, "model": "critic-1"}},
            "objectives": ["graded"],
            "search": {"evaluations": 2},
        }
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))
        study = mf.run(tmp_path / "study.yaml")
    assert [one.scores["graded"] for one in study.candidates()] == [0.0, 1.0]  # without weights nobody votes
    assert {member.url for member in server_settings(study.definition).members.values()} == {server.url}
