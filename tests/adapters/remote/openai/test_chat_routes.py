"""Conversations on OpenAI-compatible endpoints: by the chat route, or written here for a route of completions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Chat, GenerationRequest, Message, ScoringRequest, Thinking
from mergefront.adapters.remote.backend_types import make_backend, read_settings
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.study.check import check_study

sys.path.insert(0, str(Path(__file__).parents[1] / "http"))
from servers import Answer, Received, as_json, serve

CHAT = Chat(
    (Message("system", "Be brief."), Message("user", "2 + 2?"), Message("assistant", "4"), Message("user", "3 + 3?")),
    options='{"enable_thinking": false}',
)
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
WRITTEN = "[system]Be brief.[user]2 + 2?[assistant]4[user]3 + 3?[assistant]"


def endpoint(request: Received) -> Answer:
    """Says 6; echoes a text letter by letter where it is asked to."""
    body = request.json
    if body.get("echo"):
        pieces = [*body["prompt"], "!"]
        listed = {"tokens": pieces, "token_logprobs": [None, *[-0.5] * (len(pieces) - 1)], "top_logprobs": None}
        return as_json({"choices": [{"text": body["prompt"], "logprobs": listed, "finish_reason": "length"}]})
    if "messages" in body:
        return as_json({"choices": [{"message": {"content": "6"}, "finish_reason": "stop"}]})
    return as_json({"choices": [{"text": "6", "finish_reason": "stop"}]})


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with what its files say of a tokenizer, and no model."""
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"?": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def ask(folder: Path, **settings: Any) -> tuple[Any, Any, list[Any]]:
    """The generation, the log-likelihood (None on chat routes) and the bodies that were sent for them."""
    with serve(endpoint) as server:
        section = read_settings({"type": "openai", "url": server.url, "longest_wait": 0.05, **settings})
        connected = make_backend(section, MergeSpace({"m": "m"}), ModelPlaces(folder))
        with connected.apply(Recipe("linear", {"m": "m"}, {"weight[m]": 1.0}, None)) as model:
            before = len(server.received)
            (written,) = model.generate([GenerationRequest(CHAT, 8)])
            scored = None if settings["mode"] == "chat" else model.loglikelihood([ScoringRequest(CHAT, " 6\n")])[0]
        connected.close()
        return written, scored, [request.json for request in server.received[before:]]


def test_a_chat_route_gets_the_messages_and_what_the_template_is_told(tmp_path: Path) -> None:
    written, _, (sent,) = ask(tmp_path, mode="chat")
    assert written.text == "6"
    assert sent["messages"] == [{"role": one.role, "content": one.content} for one in CHAT.messages]
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_completions_route_gets_what_the_named_tokenizers_template_writes(tokenizer: Path) -> None:
    """Endpoints put the begin token there themselves; the answer that is scored is the assistant's turn."""
    written, scored, (generation, echo) = ask(tokenizer, mode="completions", tokenizer=".")
    assert written.text == "6" and generation["prompt"] == WRITTEN
    assert echo["prompt"] == WRITTEN + "6"
    assert (scored.logprob, scored.tokens) == (-0.5, 1)


@pytest.mark.parametrize(
    ("member", "task", "words"),
    [
        ({"mode": "completions"}, {}, "members.a: mode: completions sends raw texts; use mode: chat, or name"),
        ({}, {"chat": {"template": "own.jinja"}}, "members.a: the endpoint's chat route has a template of its own"),
        ({"system": "Be kind."}, {"chat": {"system": "Be brief."}}, "members.a: backend.system and the conversation's"),
        ({}, {"metric": "loss"}, "mode: completions may (for tasks with chat, with tokenizer: FOLDER)"),
    ],
)
def test_what_an_endpoint_cannot_do_is_refused_with_the_remedy(
    tmp_path: Path, member: dict[str, Any], task: dict[str, Any], words: str
) -> None:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "Q{n}", "answer": "6"}}\n' for n in range(4)))
    with serve(endpoint) as server:
        content = {
            "study": "closed",
            "merge": {"method": "task_arithmetic", "models": ["a"], "space": {"weight": [0, 1]}},
            "backend": {"type": "ensemble", "members": {"a": {"model": "m", "url": server.url, **member}}},
            "tasks": {"t": {"type": "jsonl", "path": "rows.jsonl", "metric": "exact_match", "chat": True, **task}},
            "objectives": ["t"],
        }
        (tmp_path / "study.yaml").write_text(json.dumps(content))
        (line,) = check_study(tmp_path / "study.yaml").problems
    assert words in line


def answers(respond: Any, requests: list[GenerationRequest]) -> tuple[list[Any], list[Any]]:
    """What a chat endpoint's answers are read as, and the bodies that it got."""
    with serve(respond) as server:
        section = read_settings({"type": "openai", "url": server.url, "longest_wait": 0.05, "mode": "chat"})
        connected = make_backend(section, MergeSpace({"m": "m"}), ModelPlaces(Path()))
        with connected.apply(Recipe("linear", {"m": "m"}, {"weight[m]": 1.0}, None)) as model:
            before = len(server.received)
            found = model.generate(requests)
        connected.close()
        return found, [request.json for request in server.received[before:]]


def test_an_endpoint_is_told_how_to_draw_and_need_not_take_a_seed() -> None:
    def without_seeds(request: Received) -> Answer:
        if "seed" in request.json:
            return as_json({"error": {"message": "Unsupported parameter: 'seed' is not supported."}}, 400)
        return endpoint(request)

    drawn = GenerationRequest(CHAT, 8, temperature=0.7, top_p=0.9, seed=2**40 + 5)
    _, (sent,) = answers(endpoint, [drawn])
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (0.7, 0.9, 5)
    (said,), bodies = answers(without_seeds, [drawn])
    assert said.text == "6" and "seed" not in bodies[-1] and bodies[-1]["temperature"] == 0.7


@pytest.mark.parametrize(
    ("message", "reason", "text", "is_thought"),
    [
        ({"content": "<think>3 + 3 is 6\n</think>\n\n6\n7"}, "stop", "6", False),
        ({"content": "6\n7", "reasoning_content": "3 + 3 is 6"}, "length", "6", False),
        ({"content": "<think>3 + 3"}, "length", "", True),
        ({"content": None, "reasoning_content": "3 + 3"}, "length", "", True),
        ({"content": "6"}, "stop", "6", False),
    ],
)
def test_an_endpoints_answer_is_what_comes_behind_its_thoughts(
    message: dict[str, Any], reason: str, text: str, is_thought: bool
) -> None:
    """Whether the server takes them out of the text or leaves them there."""
    choice = {"message": message, "finish_reason": reason}
    request = GenerationRequest(CHAT, 8, ("\n",), thinking=Thinking("<think>", "</think>", 100))
    (said,), (sent,) = answers(lambda _: as_json({"choices": [choice]}), [request])
    assert (said.text, said.is_thought, said.unanswered) == (text, is_thought, "")
    assert sent["max_tokens"] == 108 and "stop" not in sent
