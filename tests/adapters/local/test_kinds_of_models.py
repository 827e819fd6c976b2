"""Every kind of model that continues texts answers as transformers has it answer, whatever else is asked with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import TINY_MODELS, move

from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.asked import asked_model
from mergefront.optimizer.errors import EvaluationError, UserError

RECURRENT = (
    "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "minimax", "qwen3_5", "qwen3_next",
    "recurrent_gemma",
)  # fmt: skip
PADDED = ("deepseek_v3", "gemma3n_text", "gpt_oss", "mpt", "qwen2_5_vl")
PROMPTS = ["Sort 23 43 83 44 38:", "A", "B", "Question: what is two plus two? Answer:"]
CHOICES = [" four", " five of them"]


def make(kind: str, tokenizer: Any) -> Any:
    model = TINY_MODELS[kind].make()
    move(model, 1, 0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = 0
    return model


def generated(model: Any, tokenizer: Any, prompt: str, length: int) -> tuple[str, int]:
    """What transformers generates for one prompt by itself."""
    tokens = torch.tensor([tokenizer.encode(prompt)])
    settings = {"max_new_tokens": length, "do_sample": False, "use_cache": tokens.shape[1] > 1}
    whole = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
    reference = whole[0, tokens.shape[1] :]
    return tokenizer.decode(reference, skip_special_tokens=True), len(reference)


@pytest.mark.cases(4)
@pytest.mark.parametrize("kind", [*RECURRENT, *PADDED])
def test_choices_and_answers_are_those_of_transformers(tokenizer: Any, kind: str) -> None:
    """Padding would go into a recurrent state, and such a state cannot be cut into rows as keys and values can."""
    model = make(kind, tokenizer)
    asked = asked_model(model, tokenizer)
    answers = asked.generate([GenerationRequest(prompt, 8) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert (answer.text, answer.tokens) == generated(model, tokenizer, prompt, 8)
    pairs = [(prompt, choice) for prompt in PROMPTS for choice in CHOICES]
    scores = asked.loglikelihood([ScoringRequest(*pair) for pair in pairs])
    for (prompt, choice), score in zip(pairs, scores, strict=True):
        context, tokens = tokenizer.encode(prompt), tokenizer.encode(prompt + choice)
        with torch.no_grad():
            logprobs = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        rows, targets = logprobs[len(context) - 1 : -1], torch.tensor(tokens[len(context) :])
        assert score.logprob == pytest.approx(float(rows.gather(1, targets[:, None]).sum()), abs=1e-4)
        assert score.is_greedy == bool((rows.argmax(1) == targets).all())


def test_an_answer_does_not_depend_on_what_was_asked_before(tokenizer: Any) -> None:
    """RecurrentGemma keeps its states in its layers."""
    asked = asked_model(make("recurrent_gemma", tokenizer), tokenizer)
    first = asked.generate([GenerationRequest("B", 12)])
    asked.generate([GenerationRequest(PROMPTS[0], 12)])
    assert asked.generate([GenerationRequest("B", 12)]) == first


def test_a_recurrent_model_stops_at_stop_strings_and_end_tokens(tokenizer: Any) -> None:
    model = make("mamba2", tokenizer)
    asked = asked_model(model, tokenizer)
    free = asked.generate([GenerationRequest(prompt, 12) for prompt in PROMPTS])
    stopped = asked.generate(
        [GenerationRequest(prompt, 12, (said.text[2:4],)) for prompt, said in zip(PROMPTS, free, strict=True)]
    )
    for said, cut in zip(free, stopped, strict=True):
        assert (cut.text, cut.finish) == (said.text[: said.text.index(said.text[2:4])], "stop")
    model.generation_config.eos_token_id = tokenizer.encode(free[0].text)[0]
    (ended,) = asked_model(model, tokenizer).generate([GenerationRequest(PROMPTS[0], 12)])
    assert (ended.tokens, ended.finish) == (1, "stop")


def test_a_recurrent_model_whose_weights_are_no_numbers_is_a_failed_candidate(tokenizer: Any) -> None:
    model = make("mamba", tokenizer)
    with torch.no_grad():
        model.backbone.norm_f.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError) as failure:
        asked_model(model, tokenizer).generate([GenerationRequest("A", 4)])
    assert failure.value.kind == "not finite"


def test_a_model_that_reads_in_both_directions_generates_and_has_no_likelihoods(tokenizer: Any) -> None:
    """PaliGemma's tokens see those that follow: the answer would be part of what it is guessed from."""
    model = make("paligemma", tokenizer)
    asked = asked_model(model, tokenizer)
    answers = asked.generate([GenerationRequest(prompt, 8) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert (answer.text, answer.tokens) == generated(model, tokenizer, prompt, 8)
    with pytest.raises(UserError, match="reads a text in both directions"):
        asked.loglikelihood([ScoringRequest("A", "b")])
