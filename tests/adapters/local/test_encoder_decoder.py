"""Encoder-decoder models answer as transformers has them answer, and are scored as its loss scores them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from mergefront.adapters.language_model import GenerationRequest, LanguageModel, ScoringRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.local.encoder_decoder import EncoderDecoderModel
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.recipes.recipe import Recipe

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}
T5 |= {"eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 1}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "init_std": 0.3}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
BART |= {"eos_token_id": 0, "bos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0}
BART |= {"forced_eos_token_id": None}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5": ("T5ForConditionalGeneration", {**T5, "initializer_factor": 3.0}),
    "MT5": ("MT5ForConditionalGeneration", T5),
    "Bart": ("BartForConditionalGeneration", {**BART, "forced_bos_token_id": 1}),
    "Marian": ("MarianMTModel", {**BART, "decoder_start_token_id": 2}),
    "M2M100": ("M2M100ForConditionalGeneration", BART),
}
PROMPTS = ["Sort 23 43 83 44 38:", "A", "Question: what is two plus two? Answer:", "naïve"]
CHOICES = [" four", " five hundred of them", "x"]


@pytest.fixture(scope="module")
def framing_tokenizer(tokenizer: Any) -> Any:
    """Puts an end token after every text, as those of T5 and Marian do."""
    from tokenizers import processors

    made = deepcopy(tokenizer)
    made.pad_token = made.eos_token
    end = (made.eos_token, made.eos_token_id)
    made._tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    return made


def make(kind: str, tokenizer: Any) -> Any:
    import transformers

    name, settings = KINDS[kind]
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, name)(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_losses_are_those_of_transformers(framing_tokenizer: Any, kind: str) -> None:
    model = make(kind, framing_tokenizer)
    asked = EncoderDecoderModel(model, framing_tokenizer, max_length=64)
    assert isinstance(asked, LanguageModel)
    pairs = [(prompt, choice) for prompt in [*PROMPTS, ""] for choice in CHOICES]
    scores = asked.loglikelihood([ScoringRequest(*pair) for pair in pairs])
    for (prompt, choice), score in zip(pairs, scores, strict=True):
        tokens = torch.tensor([framing_tokenizer(prompt)["input_ids"]])
        labels = torch.tensor([framing_tokenizer(text_target=choice.strip())["input_ids"]])
        with torch.no_grad():
            output = model(input_ids=tokens, labels=labels)
        assert score.tokens == labels.shape[1]
        assert -score.logprob == pytest.approx(float(output.loss) * score.tokens, rel=1e-4)
        assert score.is_greedy == bool((output.logits.argmax(2) == labels).all())
    answers = asked.generate([GenerationRequest(prompt, 10) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = torch.tensor([framing_tokenizer(prompt)["input_ids"]])
        mask = torch.ones_like(tokens)
        written = model.generate(tokens, attention_mask=mask, max_new_tokens=10, do_sample=False, num_beams=1)[0, 1:]
        assert answer.text == framing_tokenizer.decode(written, skip_special_tokens=True)
        assert answer.tokens == len(written)


def test_a_stop_string_ends_an_answer(framing_tokenizer: Any) -> None:
    asked = EncoderDecoderModel(make("Marian", framing_tokenizer), framing_tokenizer)
    (free,) = asked.generate([GenerationRequest(PROMPTS[0], 10)])
    (cut,) = asked.generate([GenerationRequest(PROMPTS[0], 10, (free.text[3:5],))])
    assert (cut.text, cut.finish) == (free.text[: free.text.index(free.text[3:5])], "stop")


def test_a_prompt_is_encoded_once_for_all_of_its_choices(framing_tokenizer: Any) -> None:
    model = make("T5", framing_tokenizer)
    read: list[tuple[int, ...]] = []
    model.get_encoder().register_forward_hook(
        lambda module, args, kwargs, output: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    asked = EncoderDecoderModel(model, framing_tokenizer)
    asked.loglikelihood([ScoringRequest(PROMPTS[0], choice) for choice in CHOICES])
    assert [rows for rows, _ in read] == [1]


def test_weights_that_are_not_numbers_are_a_failed_candidate(framing_tokenizer: Any) -> None:
    model = make("Bart", framing_tokenizer)
    with torch.no_grad():
        model.model.shared.weight.fill_(float("nan"))
    asked = EncoderDecoderModel(model, framing_tokenizer)
    for ask in (
        lambda: asked.loglikelihood([ScoringRequest("A", "b")]),
        lambda: asked.generate([GenerationRequest("A", 4)]),
    ):
        with pytest.raises(EvaluationError) as failure:
            ask()
        assert failure.value.kind == "not finite"


def test_a_merge_of_encoder_decoders_is_asked_as_one(framing_tokenizer: Any) -> None:
    """Else its encoder would be asked to continue the prompt."""
    model, expert = make("T5", framing_tokenizer), make("T5", framing_tokenizer)
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.mul_(0.9)
    request = ScoringRequest(PROMPTS[0], " four")
    expected = EncoderDecoderModel(expert, framing_tokenizer).loglikelihood([request])
    backend = LocalBackend(model, model.state_dict(), {"a": expert.state_dict()}, tokenizer=framing_tokenizer)
    with backend.apply(Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 1.0}, "base")) as merged:
        assert merged.loglikelihood([request])[0].logprob == pytest.approx(expected[0].logprob, abs=1e-4)
