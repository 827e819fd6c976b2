"""Answers that are drawn, and answers behind thoughts: as distributions say, whatever else is in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from chat_families import FAMILIES, chat_tokenizer

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import Chat, Generation, GenerationRequest, Message, Thinking
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.local.writing.generation_state import GenerationState, drawn_token
from mergefront.adapters.thoughts import answer_of
from mergefront.adapters.tokenization import Tokenization

PROMPTS = ["What is two plus two?", "Is it A, B or C?", "Sort 23 43"]


def drawn(seed: int, prompt: str = PROMPTS[0], **more: Any) -> GenerationRequest:
    return GenerationRequest(prompt, 8, temperature=0.8, top_p=0.9, seed=seed, **more)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([1.0, 3.0, -1.0, 2.0])
    places = torch.arange(2000, dtype=torch.float64) / 2000 + 1 / 4000
    for temperature in (0.5, 1.0, 2.0):
        found = torch.bincount(torch.tensor([drawn_token(logits, temperature, 1.0, float(at)) for at in places]))
        expected = (logits / temperature).softmax(0)
        assert torch.allclose(found / 2000, expected, atol=1e-3)
    # The two likeliest have 0.90 together, the likeliest alone 0.66.
    kept = {drawn_token(logits, 1.0, 0.85, float(at)) for at in places}
    assert kept == {1, 3} and {drawn_token(logits, 1.0, 0.6, float(at)) for at in places} == {1}


@pytest.mark.parametrize("kind", ["Llama", "Mamba"])
def test_a_drawn_answer_depends_on_its_seed_and_on_nothing_else_in_the_batch(
    random_model: Callable[..., Any], tokenizer: Any, kind: str
) -> None:
    """A resumed or raced study would have other scores than an uninterrupted one."""
    settings = {"Llama": {}, "Mamba": {"state_size": 8}}[kind]
    model = HuggingFaceModel(random_model(kind, **settings), tokenizer)
    requests = [drawn(seed, prompt) for seed in range(4) for prompt in PROMPTS]
    together = model.generate([*requests, GenerationRequest(PROMPTS[1], 8)])
    alone = [model.generate([request])[0] for request in requests]
    assert [one.text for one in together[:-1]] == [one.text for one in alone]
    assert len({one.text for one in alone[:: len(PROMPTS)]}) > 1, "other seeds draw other answers"
    assert together[-1] == model.generate([GenerationRequest(PROMPTS[1], 8)])[0], "the likeliest stay the likeliest"


THINKING = Thinking("<think>", "</think>", 6)


@pytest.fixture(scope="module")
def chatting() -> Any:
    return chat_tokenizer(FAMILIES["qwen 3"])


def written(tokenizer: Any, texts: Sequence[str], request: GenerationRequest, is_open: bool = False) -> Generation:
    """The answer after a model wrote these texts token by token, as far as it was let."""
    ends = [tokenizer.eos_token_id]
    state = GenerationState(request, tokenizer, Tokenization(tokenizer), ends, is_open)
    for token in (token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]):
        if state.done:
            break
        state.append(token)
    return state.generation()


def test_an_answer_is_what_comes_behind_the_thoughts(chatting: Any) -> None:
    request = GenerationRequest("", 4, ("is",), thinking=THINKING)
    assert written(chatting, ["<think>", " is B", "</think>", "  four is"], request).text == "four "
    said = written(chatting, ["<think>", " B " * 20], request)
    assert (said.text, said.is_thought, said.tokens) == ("", True, THINKING.most), "it is cut off inside its thoughts"
    said = written(chatting, ["<think>", " B", "<end>"], request)
    assert (said.text, said.is_thought) == ("", True), "it ends inside its thoughts"
    assert written(chatting, [" four", "<end>"], request).text == "four", "a merge that does not think answers at once"
    said = written(chatting, [" four", "<end>"], request, is_open=True)
    assert said.is_thought, "the prompt opened the thoughts"
    said = written(chatting, ["<think>", "B", "</think>", " four" * 9], request)
    assert said.finish == "length" and not said.is_thought and said.tokens == 3 + 4, "the answer has tokens of its own"


def test_prompts_that_open_thoughts_are_known_by_their_template(chatting: Any) -> None:
    from mergefront.adapters.chat_templates import TemplateReader

    chat = Chat((Message("user", "Is it A?"),))
    for family, is_open in (("qwen 3", False), ("deepseek r1", True)):
        chatting.chat_template = FAMILIES[family]
        tokenization = Tokenization(chatting, chats=TemplateReader(chatting))
        assert tokenization.opens_thoughts(GenerationRequest(chat, 4, thinking=THINKING)) == is_open


def test_a_server_that_takes_the_thoughts_out_leaves_the_answer() -> None:
    request = GenerationRequest("", 4, ("\n",), thinking=THINKING)
    assert answer_of(Generation("four\nor", 9, "length"), request, is_parted=True).text == "four"
    assert answer_of(Generation("<think> four", 9, "stop"), request).is_thought


def test_answers_cut_off_inside_their_thoughts_are_counted() -> None:
    class Thinker:
        def loglikelihood(self, requests: Any) -> Any: ...

        def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
            return [Generation("", 6, "length", is_thought=one.seed % 2 == 0) for one in requests]

    model = CountedModel(Thinker())
    model.generate([drawn(seed, thinking=THINKING) for seed in range(4)])
    assert model.take_outcomes() == {"thought": 2, "empty": 2}
