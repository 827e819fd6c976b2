"""What comes of each item at an OpenAI-compatible endpoint: a text, or the reason why there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.language_model import Generation
from mergefront.adapters.remote.http.breaker import BreakerPolicy
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.adapters.remote.openai.token_count import token_counter
from mergefront.adapters.remote.openai.wire import OpenAIWire
from mergefront.optimizer.errors import EvaluationError, UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "http"))
from servers import Answer, Received, as_json, serve

USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
AT_ONCE = ClientPolicy(retry=RetryPolicy(3, 0.001, 0.001), breaker=BreakerPolicy(threshold=2, give_up=0.01))


def answered(answer: Answer, **wire: Any) -> tuple[Generation, int]:
    """What a wire makes of an answer, twice, and how often it asked."""
    with serve(lambda _: answer) as server, HttpClient(server.url, AT_ONCE) as client:
        asked = OpenAIWire(client, "m", **{"mode": "chat", **wire})
        one, two = (client.run(asked.generate("Capital?", 8, ("\n",))) for _ in range(2))
        assert one == two, "what is kept is read otherwise than what came"
        return one, len(server.received)


def chat(content: Any, reason: Any = "stop", **message: Any) -> Answer:
    message = {"role": "assistant", "content": content, **message}
    return as_json({"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": USAGE})


@pytest.mark.parametrize(
    "reason",
    ["stop", "eos", "eos_token", "stop_sequence", "end_turn", "", "STOP", "COMPLETE", None, "content_filter", 0],
)
def test_a_text_is_taken_whatever_ended_it(reason: Any):
    """Every second provider has a reason of its own; the text is there and paid for."""
    assert answered(chat("Paris", reason)) == (Generation("Paris", 2, "stop"), 1)


@pytest.mark.parametrize("reason", ["length", "LENGTH", "max_tokens", "model_length"])
def test_a_text_that_was_cut_off_is_taken_as_such(reason: str):
    assert answered(chat("Paris is", reason))[0] == Generation("Paris is", 2, "length")
    assert answered(chat("Paris is", {"type": reason, "length": 2}))[0] == Generation("Paris is", 2, "length")
    assert answered(chat("Paris\nand more", reason))[0] == Generation("Paris", 2, "stop")


def test_a_text_in_parts_or_in_another_shape_is_taken():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Paris"}]
    assert answered(chat(parts))[0].text == "Paris"
    assert (
        answered(chat([{"type": "output_text", "text": "Pa"}, {"type": "output_text", "text": "ris"}]))[0].text
        == "Paris"
    )
    assert answered(chat([{"type": "thinking", "thinking": "hm"}], "length"))[0].unanswered == "tokens used up"
    half = Answer(body=b'{"choices": [{"message": {"content": "Paris \\ud83d"}, "finish_reason": "length"}]}')
    assert answered(half)[0].text == "Paris \ufffd"
    plain = as_json({"choices": [{"text": "Paris", "finish_reason": "stop"}], "usage": USAGE})
    assert answered(plain)[0].text == answered(plain, mode="completions")[0].text == "Paris"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (chat(None, "length", reasoning_content="Let me think"), "tokens used up"),
        (chat("", "length"), "tokens used up"),
        (chat(None, "content_filter"), "content filter"),
        (chat("", "SAFETY"), "content filter"),
        (chat("", "content_filter: PROHIBITED_CONTENT"), "content filter"),
        (chat(None, "stop", refusal="I cannot help with that."), "refusal"),
        (chat(None, "tool_calls", tool_calls=[]), "no text (finish_reason tool_calls)"),
        (chat(None, None), "no text"),
        (chat([]), ""),
        (as_json({"choices": [], "usage": USAGE}), "no choices"),
        (as_json({"choices": None, "usage": USAGE}), "no choices"),
        (as_json({"choices": [{"finish_reason": "content_filter", "message": {}}], "usage": USAGE}), "content filter"),
    ],
)
def test_an_answer_without_a_text_is_an_outcome_and_no_fault_of_the_server(answer: Answer, why: str):
    """One such item failed every candidate, or ended the search as if the server were gone."""
    found, times = answered(answer)
    assert (found.text, found.unanswered, times) == ("", why, 1)


@pytest.mark.parametrize(
    ("status", "error", "why"),
    [
        (400, {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}, "content filter"),
        (400, {"message": "The response was filtered by Azure OpenAI's content management policy."}, "content filter"),
        (400, {"code": "data_inspection_failed", "message": "inappropriate content"}, "content filter"),
        (403, {"code": 403, "message": "Requires moderation: your input was flagged"}, "content filter"),
        (200, {"code": 403, "message": "your input was flagged"}, "content filter"),
        (400, {"code": "context_length_exceeded", "message": "maximum context length is 64"}, "prompt too long"),
        (400, {"type": "exceed_context_size_error", "message": "too many tokens"}, "prompt too long"),
        (422, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000", "prompt too long"),
        (413, {"message": "Input is too long for requested model."}, "prompt too long"),
        (400, {"message": "Could not finish the message because max_tokens was reached"}, "tokens used up"),
    ],
)  # fmt: skip
def test_a_refusal_of_one_prompt_is_an_outcome_of_its_item(status: int, error: Any, why: str):
    """It is not kept: the server may be started with a longer context."""
    found, times = answered(as_json({"error": error}, status))
    assert (found, times) == (Generation("", 0, "stop", unanswered=why), 2)


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_a_fault_that_passes_is_no_outcome_whatever_its_words(status: int):
    faults = [as_json({"error": {"message": "the content filter is overloaded"}}, status)] * 2

    def recovers(_: Received) -> Answer:
        return faults.pop() if faults else chat("Paris")

    with serve(recovers) as server, HttpClient(server.url, ClientPolicy(retry=RetryPolicy(3, 0.001, 0.001))) as client:
        assert client.run(OpenAIWire(client, "m", mode="chat").generate("one", 8, ())).text == "Paris"


@pytest.mark.parametrize(
    "answer",
    [as_json({"result": "Paris"}), as_json({"choices": [{}]}), as_json({"choices": [{"message": {"content": 3}}]}),
     as_json({"error": {"message": "The model `m` does not exist"}}, 404), as_json(["Paris"]),
     as_json({"error": {"message": "The model `content-safety` does not exist"}}, 404)],
)  # fmt: skip
def test_what_is_no_answer_to_a_request_for_text_stays_a_failure(answer: Answer):
    """A wrong address or model would end as a search in which every item is wrong."""
    with pytest.raises(EvaluationError):
        answered(answer)


@pytest.mark.parametrize(
    ("usage", "text", "tokens"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 9}, "Paris is it", 9),
        (None, "Paris is it", None),
        ({}, "Paris is it", None),
        ({"prompt_tokens": 5}, "Paris is it", None),
        ({"prompt_tokens": 5, "completion_tokens": None}, "Paris is it", None),
        ({"prompt_tokens": 5, "completion_tokens": "9"}, "Paris is it", None),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "Paris is it", None),
        ({"prompt_tokens": 5, "completion_tokens": 0}, "Paris is it", None),
        ({"prompt_tokens": 5, "completion_tokens": 0}, "", 0),
    ],
)
def test_tokens_that_are_not_reported_are_unknown_and_never_none(usage: Any, text: str, tokens: int | None):
    """The cheapest model would be the one whose endpoint does not count."""
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    content = {"choices": [choice], **({} if usage is None else {"usage": usage})}
    assert answered(as_json(content))[0].tokens == tokens


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokens_are_counted_here_where_a_tokenizer_is_named(tokenizer: Path):
    """Reasoning is written and paid for like the answer."""
    reasoned = {"content": "Paris it is", "reasoning_content": "Let me see "}
    counted = as_json({"choices": [{"message": reasoned, "finish_reason": "stop"}]})
    assert answered(counted, count=token_counter(tokenizer))[0].tokens == 6
    assert answered(chat("Paris it is"), count=token_counter(tokenizer))[0].tokens == 2
    with serve(lambda _: counted) as server, HttpClient(server.url, AT_ONCE) as client:
        wire = OpenAIWire(client, "m", mode="chat", count=token_counter(tokenizer / "tokenizer.json"))
        client.run(wire.generate("What is the capital?", 8, ()))
        assert (client.usage.input_tokens, client.usage.output_tokens) == (4, 6)
    # Usage says that the prompt of 5 tokens was read whole, or that its beginning was left out.
    for prompt, is_shortened in (("a b c d e", False), ("a b c d e f g", True)):
        with serve(lambda _: chat("Paris")) as server, HttpClient(server.url, AT_ONCE) as client:
            wire = OpenAIWire(client, "m", mode="chat", count=token_counter(tokenizer))
            assert client.run(wire.generate(prompt, 8, ())).shortened == is_shortened
    (tokenizer / "broken.json").write_text("{}")
    for wrong in ("nowhere", "broken.json"):
        with pytest.raises(UserError, match=rf"tokenizer.*{wrong}"):
            token_counter(tokenizer / wrong)


class Particular:
    """A model that takes requests only as it likes them: ``refusals`` are by field, ``needed`` fields must be there."""

    def __init__(self, refusals: Mapping[str, Any], needed: tuple[str, ...] = ()) -> None:
        self.refusals = refusals
        self.needed = needed
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, request: Received) -> Answer:
        body = request.json
        for name, refusal in self.refusals.items():
            if name in body:
                return as_json(refusal, 400)
        assert all(name in body for name in self.needed)
        self.bodies.append(body)
        return chat("Paris\nand more")


UNSUPPORTED = "Unsupported parameter: '{}' is not supported with this model."


@pytest.mark.parametrize(
    ("refusal", "name"),
    [
        ({"error": {"message": UNSUPPORTED.format("max_tokens") + " Use 'max_completion_tokens' instead."}},
         "max_completion_tokens"),
        ({"error": {"message": UNSUPPORTED.format("max_tokens"), "param": "max_tokens"}}, "max_completion_tokens"),
        ({"detail": [{"type": "missing", "loc": ["body", "max_new_tokens"], "msg": "Field required"}]},
         "max_new_tokens"),
    ],
)  # fmt: skip
def test_a_limit_of_tokens_goes_by_the_name_that_the_model_gives_it(refusal: Any, name: str):
    model = Particular({"max_tokens": refusal}, (name,))
    with serve(model) as server, HttpClient(server.url, AT_ONCE) as client:
        wire = OpenAIWire(client, "m", mode="chat")
        for prompt in ("one", "two"):
            assert client.run(wire.generate(prompt, 8, ("\n",))).text == "Paris"
        assert [body[name] for body in model.bodies] == [8, 8]
        assert len(server.received) == 3, "what was learned once is asked again"
        # Another process knows the request by its usual name.
        client.run(OpenAIWire(client, "m", mode="chat").generate("one", 8, ("\n",)))
        assert len(server.received) == 3


@pytest.mark.parametrize(
    "refusal",
    [
        {"error": {"message": UNSUPPORTED.format("stop"), "param": "stop"}},
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "stop"], "msg": "Extra inputs are not permitted"}]},
    ],
)
def test_stop_strings_are_applied_here_where_the_model_takes_none(refusal: Any):
    model = Particular({"stop": refusal})
    with serve(model) as server, HttpClient(server.url, AT_ONCE) as client:
        assert client.run(OpenAIWire(client, "m", mode="chat").generate("one", 8, ("\n",))).text == "Paris"
        assert "stop" not in model.bodies[0]


def test_fields_of_the_user_are_added_and_a_temperature_can_be_left_out():
    message = "Unsupported value: 'temperature' does not support 0 with this model."
    model = Particular({"temperature": {"error": {"message": message, "param": "temperature"}}})
    with serve(model) as server, HttpClient(server.url, AT_ONCE) as client:
        with pytest.raises(EvaluationError, match=r"request: \{temperature: null\}"):
            client.run(OpenAIWire(client, "m", mode="chat").generate("one", 8, ()))
        added = {"temperature": None, "reasoning_effort": "low", "provider": {"order": ["x"]}}
        client.run(OpenAIWire(client, "m", mode="chat", request=added).generate("one", 8, ()))
        (body,) = model.bodies
        assert "temperature" not in body
        assert body["reasoning_effort"] == "low" and body["provider"] == {"order": ["x"]} and body["max_tokens"] == 8
        # Another field makes another request, whose answer is not the kept one.
        client.run(OpenAIWire(client, "m", mode="chat", request={"temperature": None}).generate("one", 8, ()))
        assert len(model.bodies) == 2
