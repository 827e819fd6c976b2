"""Studies on OpenAI-compatible endpoints: what cannot be kept to is refused by check, before money is spent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergefront.study.check import check_study

sys.path.insert(0, str(Path(__file__).parents[1] / "http"))
from servers import Answer, Received, as_json, serve


def capital(request: Received) -> Answer:
    """A closed model that says Paris, and not how many tokens that took."""
    return as_json({"choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}]})


def problems(folder: Path, *, metric: str = "exact_match", member: dict[str, Any], **content: Any) -> list[str]:
    """What check says of a study of one closed model behind an address."""
    (folder / "rows.jsonl").write_text("".join(f'{{"prompt": "Q{n}", "answer": "Paris"}}\n' for n in range(4)))
    made = {
        "study": "closed",
        "storage": "sqlite:///study.db",
        "merge": {"method": "task_arithmetic", "models": ["a"], "space": {"weight": [0, 1]}},
        "backend": {"type": "ensemble", "members": {"a": {"model": "m", **member}}},
        "tasks": {"t": {"type": "jsonl", "path": "rows.jsonl", "metric": metric, "report_fraction": 0}},
        "objectives": ["t"],
        **content,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    return check_study(folder / "study.yaml").problems


@pytest.mark.parametrize(
    "more",
    [
        {"metric": "output_tokens", "member": {}},
        {"member": {}, "constraints": ["generated_tokens <= 100"]},
        {"member": {"budget": {"tokens": 100}}},
        {"member": {"budget": {"money": 1.0}, "price": {"output": 5.0}}},
    ],
)
def test_tokens_that_nobody_counts_are_refused_where_they_are_needed(tmp_path: Path, more: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    with serve(capital) as server:
        reached = {"url": server.url, **more["member"]}
        (problem,) = problems(tmp_path, **{**more, "member": reached})
        assert "usage" in problem and "tokenizer: FOLDER" in problem
        assert problems(tmp_path, **{**more, "member": {**reached, "tokenizer": "tokenizer.json"}}) == []


def test_an_address_that_is_a_little_wrong_is_named_as_such(tmp_path: Path) -> None:
    """The commonest first mistake; some servers answer it with status 200."""
    (problem,) = problems(tmp_path, member={"url": "http://127.0.0.1:9/v1/chat/completions"})
    assert problem == (
        "backend.members.a.url: it ends where /chat/completions begins; remove that "
        "(given: 'http://127.0.0.1:9/v1/chat/completions')"
    )
    wrong = as_json({"error": "Unexpected endpoint or method. (POST /chat/completions). Returning 200 anyway"})
    for answer in (wrong, Answer(404, b"404 page not found")):
        with serve(lambda _, answer=answer: answer) as server:
            (problem,) = problems(tmp_path, member={"url": server.url})
            assert "mostly end with /v1" in problem


def test_an_endpoint_that_answers_nothing_is_found_out_beforehand(tmp_path: Path) -> None:
    """Every item would count as wrong, and every candidate fail at its own price."""
    for choices in ([], [{"message": {"content": None}, "finish_reason": "content_filter"}]):
        with serve(lambda _, choices=choices: as_json({"choices": choices})) as server:
            (problem,) = problems(tmp_path, member={"url": server.url})
            assert "no answer to a plain question" in problem
    reasons = {"message": {"content": "", "reasoning_content": "The user asks"}, "finish_reason": "length"}
    with serve(lambda _: as_json({"choices": [reasons]})) as server:
        assert problems(tmp_path, member={"url": server.url}) == []


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"prompt": "x"}, "'prompt' is set by scoring"),
        ({"model": "other"}, "'model' is set by scoring"),
        ({"messages": []}, "'messages' is set by scoring"),
        ({"logprobs": 5}, "'logprobs' is set by scoring"),
        ({"max_completion_tokens": 5}, "'max_completion_tokens' is set by scoring"),
        ({"stream": True}, "'stream' is set by scoring"),
        ({"n": 2}, "'n' is set by scoring"),
        ({"temperature": 0.7}, "temperature is 0.7"),
        ({"seed": float("nan")}, "cannot be sent as JSON"),
    ],
)
def test_fields_that_scoring_needs_cannot_be_overwritten(tmp_path: Path, request_: dict[str, Any], words: str) -> None:
    """Another prompt or model would be scored under the names of this one."""
    (problem,) = problems(tmp_path, member={"url": "http://127.0.0.1:9", "request": request_})
    assert problem.startswith("backend.members.a.request: ") and words in problem
    with serve(capital) as server:
        added = {"seed": 1, "temperature": None, "provider": {"order": ["x"]}}
        assert problems(tmp_path, member={"url": server.url, "request": added}) == []
        assert json.loads(server.received[-1].body)["provider"] == {"order": ["x"]}
