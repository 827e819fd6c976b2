"""Echoed prompts: the pieces that an endpoint lists say where its tokens lie, or nothing is believed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.remote.http.client import HttpClient
from mergefront.adapters.remote.openai.echo import NoLogProbabilitiesError
from mergefront.adapters.remote.openai.wire import OpenAIWire
from mergefront.optimizer.errors import EvaluationError

sys.path.insert(0, str(Path(__file__).parents[1] / "http"))
from servers import as_json, serve

CONTEXT, CONTINUATION = "Capital of France ?", " Paris it is"
TEXT = ["Capital", " of", " France", " ?", " Paris", " it", " is"]
VALUES = [None, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
END, LAST = " end", -9.0
RIGHT = (-15.0, 3)


def echoed(pieces: Sequence[str], values: Sequence[float | None], **more: Any) -> Any:
    top = [None if value is None else {"?": value} for value in values]
    logprobs = {"tokens": list(pieces), "token_logprobs": list(values), "top_logprobs": top, **more}
    return {"choices": [{"text": "".join(pieces), "finish_reason": "length", "logprobs": logprobs}]}


def scored(answer: Any, context: str = CONTEXT, continuation: str = CONTINUATION) -> tuple[float, int]:
    with serve(lambda _: as_json(answer)) as server, HttpClient(server.url) as client:
        found = client.run(OpenAIWire(client, "m").score(context, continuation))
    return found.logprob, found.tokens


def lengths(pieces: Sequence[str], encoding: str | None = None) -> list[int]:
    sizes = [len(piece.encode(encoding) if encoding else piece) for piece in pieces]
    return [sum(sizes[:place]) for place in range(len(sizes))]


@pytest.mark.parametrize("begin", [(), ("<|begin_of_text|>",), ("<s>",), ("[gMASK]", "<sop>"), ("<bos>", "<bos>")])
@pytest.mark.parametrize("first", [-0.5, 0.0, None])
def test_begin_tokens_are_no_part_of_the_text(begin: tuple[str, ...], first: float | None):
    """An endpoint that counts their letters in text_offset gave every item the score of other tokens."""
    pieces = [*begin, *TEXT, END]
    values = [None, *([first] * len(begin)), *VALUES[1:], LAST]
    assert scored(echoed(pieces, values, text_offset=lengths(pieces))) == RIGHT
    assert scored(echoed(pieces, values)) == RIGHT


@pytest.mark.parametrize(
    "offsets", [lengths([*TEXT, END], "utf-16"), [0] * 8, None, [9, 8, 7, 6, 5, 4, 3, 2], ["a"], list(range(99))]
)
def test_what_an_endpoint_says_of_places_is_not_believed(offsets: Any):
    assert scored(echoed([*TEXT, END], [*VALUES, LAST], text_offset=offsets)) == RIGHT


def test_a_text_that_begins_like_a_begin_token_keeps_it():
    pieces, values = ["<s>", "one", " two", END], [None, -1.0, -2.0, LAST]
    assert scored(echoed(pieces, values), "<s>one", " two") == (-2.0, 1)
    assert scored(echoed(["<s>", *pieces], [None, -0.5, *values[1:]]), "<s>one", " two") == (-2.0, 1)


@pytest.mark.parametrize(
    "parts",
    [
        ["bytes:\\xf0\\x9f", "bytes:\\xa6\\x99"],
        ["<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"],
        ["", "", "\U0001f999"],
        ["", "\U0001f999"],
    ],
)
def test_parts_of_a_character_count_to_where_it_stands(parts: list[str]):
    """A token of the answer that was taken for one of the prompt would make the answer likelier."""
    pieces = ["A", *parts, " b", END]
    values = [None, *([-1.0] * len(parts)), -2.0, LAST]
    assert scored(echoed(pieces, values), "A", "\U0001f999 b") == (-2.0 - len(parts), len(parts) + 1)
    assert scored(echoed(pieces, values), "A\U0001f999", " b") == (-2.0, 1)


def test_spaces_and_tokens_across_the_seam_count_to_the_continuation():
    assert scored(echoed(["one", " two", END], [None, -1.0, LAST]), "one ", "two") == (-1.0, 1)
    assert scored(echoed(["one", " tw", "o!", END], [None, -1.0, -2.0, LAST]), "one two", "!") == (-2.0, 1)
    # A tokenizer that puts a space before every text.
    assert scored(echoed(["<s>", " one", " two", END], [None, -1.0, -2.0, LAST]), "one", " two") == (-2.0, 1)


@pytest.mark.parametrize(
    "pieces",
    [
        ["\u2581Capital", "\u2581of", "\u2581France", "\u2581?", "\u2581Paris", "\u2581it", "\u2581is", "\u2581end"],
        ["capital", " of", " france", " ?", " paris", " it", " is", " end"],
        ["User:", " ", *TEXT],
        ["<s>", "<s>", "<s>", *TEXT, END],
        ["System", *TEXT],
        [*TEXT[:6], " isn't", END],
        ["\ufffd", *TEXT[1:], END],
        TEXT[:6],
        [" end"],
        [],
    ],
)
def test_pieces_that_do_not_spell_the_text_are_refused(pieces: list[str]):
    with pytest.raises(NoLogProbabilitiesError, match="do not spell"):
        scored(echoed(pieces, [-1.0] * len(pieces)))


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"text": "x", "finish_reason": "length", "logprobs": None}]},
        {"choices": [{"text": "x", "logprobs": {"content": [{"token": "x", "logprob": -1.0}]}}]},
        {"choices": []},
        {"choices": [{"text": "x", "logprobs": {"tokens": TEXT, "token_logprobs": None}}]},
    ],
)
def test_an_endpoint_that_ignores_echo_or_logprobs_is_refused(answer: Any):
    with pytest.raises(NoLogProbabilitiesError, match="exact_match"):
        scored(answer)


def test_the_first_of_all_tokens_has_no_log_probability_whatever_is_said():
    """A made-up 0 would be the likeliest answer of all."""
    for first in (None, 0.0, -0.5):
        with pytest.raises(EvaluationError, match="give every item a prompt"):
            scored(echoed(["Paris", " is", END], [first, -1.0, LAST]), "", "Paris is")
    assert scored(echoed(["<s>", "Paris", " is", END], [None, -2.0, -1.0, LAST]), "", "Paris is") == (-3.0, 2)


@pytest.mark.parametrize("wrong", [None, 0.5, math.inf])
def test_numbers_that_are_missing_or_none_are_refused(wrong: Any):
    values = [*VALUES, LAST]
    values[5] = wrong
    with pytest.raises(EvaluationError):
        scored(echoed([*TEXT, END], values))


def likeliest(top: Any) -> bool | None:
    answer = echoed([*TEXT, END], [*VALUES, LAST])
    answer["choices"][0]["logprobs"]["top_logprobs"] = top
    with serve(lambda _: as_json(answer)) as server, HttpClient(server.url) as client:
        return client.run(OpenAIWire(client, "m").score(CONTEXT, CONTINUATION)).is_greedy


def test_whether_a_text_is_the_likeliest_is_unknown_where_an_endpoint_does_not_say() -> None:
    """Taken for no, a task that asks for it would score 0 for every model."""
    best = [None, *({"x": value} for value in [*VALUES[1:], LAST])]
    assert likeliest(best) is True
    assert likeliest([*best[:5], {"y": -0.1}, *best[6:]]) is False
    for missing in (None, [], best[:6], [None] * 8, [{}] * 8):
        assert likeliest(missing) is None


def test_a_task_that_asks_for_the_likeliest_text_is_not_scored_without_knowing_it() -> None:
    pytest.importorskip("lm_eval")
    from mergefront.adapters.remote.openai.backend import OpenAIModel
    from mergefront.adapters.tasks.lm_eval.model import HarnessModel

    class Request:
        args = (CONTEXT, CONTINUATION)

    answer = echoed([*TEXT, END], [*VALUES, LAST])
    answer["choices"][0]["logprobs"]["top_logprobs"] = None
    with serve(lambda _: as_json(answer)) as server, HttpClient(server.url) as client:
        model = OpenAIModel(OpenAIWire(client, "m"))
        assert HarnessModel(model).loglikelihood([Request()])[0][0] == RIGHT[0]
        with pytest.raises(EvaluationError, match="top_logprobs"):
            HarnessModel(model, needs_greedy=True).loglikelihood([Request()])
