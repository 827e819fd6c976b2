"""Scores of local models are the model's own: exact, whatever else was in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mergefront.adapters.language_model import Generation, GenerationRequest, LanguageModel, ScoringRequest
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.adapters.tokenization import Tokenization
from mergefront.optimizer.errors import EvaluationError

PAIRS = [
    ("Question: what is two plus two? Answer:", " four"),
    ("Question: what is two plus two? Answer:", " five"),
    ("Sort 3 1 2:", " 1 2 3"),
    ("A", "b"),
    ("Write 425 in French: ", "quatre cent vingt-cinq"),
    ("", "The merge of two experts"),
    ("naïve", " café, Über den Wolken"),
]
PROMPTS = ["Sort 23 43 83 44 38:", "A", "Question: what is two plus two? Answer:", "naïve", "Write 425"]


def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The definition: one row, full logits, float64 log-softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context + continuation])).logits[0].double().log_softmax(-1)
    rows = logits[len(context) - 1 : -1]
    picked = rows[torch.arange(len(continuation)), torch.tensor(continuation)]
    return float(picked.sum()), rows.argmax(-1).tolist() == continuation


def test_is_a_language_model(tiny_llama: Any, tokenizer: Any) -> None:
    assert isinstance(HuggingFaceModel(tiny_llama, tokenizer), LanguageModel)


def test_log_likelihoods_are_those_of_the_definition(tiny_llama: Any, tokenizer: Any) -> None:
    answers = HuggingFaceModel(tiny_llama, tokenizer).loglikelihood([ScoringRequest(*pair) for pair in PAIRS])
    for (context, continuation), answer in zip(PAIRS, answers, strict=True):
        bare = context.rstrip()
        whole = tokenizer.encode(context + continuation)
        before = tokenizer.encode(bare) if bare else []
        expected, greedy = by_hand(tiny_llama, before or [tokenizer.eos_token_id], whole[len(before) :])
        assert answer.logprob == pytest.approx(expected, abs=1e-4)
        assert (answer.tokens, answer.is_greedy) == (len(whole) - len(before), greedy)


def test_a_batch_scores_what_single_requests_score(tiny_llama: Any, tokenizer: Any) -> None:
    requests = [ScoringRequest(*pair) for pair in PAIRS]
    batched = HuggingFaceModel(tiny_llama, tokenizer).loglikelihood(requests)
    single = HuggingFaceModel(tiny_llama, tokenizer, max_rows=1)
    for request, answer in zip(requests, batched, strict=True):
        (alone,) = single.loglikelihood([request])
        assert answer.logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert (answer.tokens, answer.is_greedy) == (alone.tokens, alone.is_greedy)


def test_spaces_between_context_and_continuation_may_stand_on_either_side(tiny_llama: Any, tokenizer: Any) -> None:
    model = HuggingFaceModel(tiny_llama, tokenizer)
    left, right = model.loglikelihood([ScoringRequest("Answer: ", "four"), ScoringRequest("Answer:", " four")])
    assert left == right


def test_choices_of_one_token_share_one_pass(tiny_llama: Any, tokenizer: Any) -> None:
    passes: list[tuple[int, ...]] = []
    tiny_llama.register_forward_hook(
        lambda module, args, kwargs, output: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    requests = [ScoringRequest("Is it A, B or C?", letter) for letter in "ABC"]
    answers = HuggingFaceModel(tiny_llama, tokenizer).loglikelihood(requests)
    assert [rows for rows, _ in passes] == [1]
    assert len({answer.logprob for answer in answers}) == 3


def test_a_text_longer_than_the_model_reads_is_scored_in_windows(tiny_llama: Any, tokenizer: Any) -> None:
    text = " ".join(["The merge of two experts keeps what both of them know."] * 6)
    tokens = tokenizer.encode(text)
    length = 16
    (answer,) = HuggingFaceModel(tiny_llama, tokenizer, max_length=length).loglikelihood([ScoringRequest("", text)])
    whole = [tokenizer.eos_token_id, *tokens]
    expected = 0.0
    for start in range(0, len(tokens), length):
        targets = tokens[start : start + length]
        end = start + 1 + len(targets)
        context = whole[max(0, end - 1 - length) : start + 1]
        expected += by_hand(tiny_llama, context, targets)[0]
    assert answer.tokens == len(tokens)
    assert answer.logprob == pytest.approx(expected, abs=1e-3)


def test_a_context_that_is_too_long_loses_its_beginning(tiny_llama: Any, tokenizer: Any) -> None:
    model = HuggingFaceModel(tiny_llama, tokenizer, max_length=8)
    context, continuation = tokenizer.encode("Sort 23 43 83 44 38:"), tokenizer.encode(" 23")
    (answer,) = model.loglikelihood([ScoringRequest("Sort 23 43 83 44 38:", " 23")])
    kept = (context + continuation)[-9:][: -len(continuation)]
    assert answer.logprob == pytest.approx(by_hand(tiny_llama, kept, continuation)[0], abs=1e-4)


def test_generates_what_transformers_generates(tiny_llama: Any, tokenizer: Any) -> None:
    model = HuggingFaceModel(tiny_llama, tokenizer)
    answers = model.generate([GenerationRequest(prompt, 12) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        tokens = torch.tensor([tokenizer.encode(prompt)])
        reference = tiny_llama.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )[0, tokens.shape[1] :]
        assert answer.text == tokenizer.decode(reference, skip_special_tokens=True)
        assert answer.tokens == len(reference)


def test_a_greedy_continuation_is_scored_as_greedy(tiny_llama: Any, tokenizer: Any) -> None:
    model = HuggingFaceModel(tiny_llama, tokenizer)
    prompt = tokenizer.encode("Sort 3 1 2:")
    with torch.no_grad():
        token = int(tiny_llama(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    best, other = model.loglikelihood(
        [ScoringRequest("Sort 3 1 2:", text) for text in (tokenizer.decode([token]), " zebra")]
    )
    assert best.is_greedy and not other.is_greedy


def test_stop_strings_end_a_generation_and_are_cut_off(tiny_llama: Any, tokenizer: Any) -> None:
    model = HuggingFaceModel(tiny_llama, tokenizer)
    free = model.generate([GenerationRequest(prompt, 12) for prompt in PROMPTS])
    for start, end in ((2, 3), (3, 6)):  # one character; several, which may span tokens
        requests = [
            GenerationRequest(prompt, 12, (answer.text[start:end], "\x00never"))
            for prompt, answer in zip(PROMPTS, free, strict=True)
        ]
        for request, answer, whole in zip(requests, model.generate(requests), free, strict=True):
            assert answer.text == whole.text[: whole.text.index(request.stop[0])]
            assert answer.finish == "stop"
            assert answer.tokens <= whole.tokens


def test_a_batch_stops_when_its_last_sequence_has(tiny_llama: Any, tokenizer: Any) -> None:
    steps: list[int] = []
    model = HuggingFaceModel(tiny_llama, tokenizer)
    free = model.generate([GenerationRequest(prompt, 12) for prompt in PROMPTS])
    tiny_llama.register_forward_hook(
        lambda module, args, kwargs, output: steps.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    stopped = model.generate(
        [GenerationRequest(prompt, 12, (answer.text[0],)) for prompt, answer in zip(PROMPTS, free, strict=True)]
    )
    assert len(steps) == max(answer.tokens for answer in stopped) < 12
    assert steps[0] == len(PROMPTS)


def test_an_end_token_ends_the_text(tiny_llama: Any, tokenizer: Any) -> None:
    prompt = tokenizer.encode("Sort 3 1 2:")
    with torch.no_grad():
        token = int(tiny_llama(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    tiny_llama.generation_config.eos_token_id = [tokenizer.eos_token_id, token]
    (answer,) = HuggingFaceModel(tiny_llama, tokenizer).generate([GenerationRequest("Sort 3 1 2:", 12)])
    assert (answer.tokens, answer.finish) == (1, "stop")


def test_new_weights_give_new_answers(tiny_llama: Any, tokenizer: Any) -> None:
    model = HuggingFaceModel(tiny_llama, tokenizer)
    request = ScoringRequest("Answer:", " four")
    (before,) = model.loglikelihood([request])
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            parameter.mul_(0.5)
    (after,) = model.loglikelihood([request])
    assert after.logprob != before.logprob
    assert after == HuggingFaceModel(tiny_llama, tokenizer).loglikelihood([request])[0]


def test_weights_that_are_not_numbers_are_a_failed_candidate_and_no_score(tiny_llama: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(float("nan"))
    model = HuggingFaceModel(tiny_llama, tokenizer)
    with pytest.raises(EvaluationError) as scoring:
        model.loglikelihood([ScoringRequest("Answer:", " four")])
    with pytest.raises(EvaluationError) as generating:
        model.generate([GenerationRequest("Answer:", 4)])
    assert scoring.value.kind == generating.value.kind == "not finite"


def test_a_tokenizer_that_adds_bos_and_end_tokens_is_split_at_the_right_place(tiny_llama: Any, tokenizer: Any) -> None:
    from copy import deepcopy

    from tokenizers import processors

    framed = deepcopy(tokenizer)
    framed.bos_token = "!"
    framed._tokenizer.post_processor = processors.TemplateProcessing(
        single="! $A <end>", special_tokens=[("!", framed.bos_token_id), ("<end>", framed.eos_token_id)]
    )
    (answer,) = HuggingFaceModel(tiny_llama, framed).loglikelihood([ScoringRequest("Answer:", " four")])
    context, continuation = tokenizer.encode("Answer:"), tokenizer.encode(" four")
    expected, _ = by_hand(tiny_llama, [framed.bos_token_id, *context], continuation)
    assert answer.logprob == pytest.approx(expected, abs=1e-4)
    assert answer.tokens == len(continuation)


def test_several_continuations_of_one_context_share_its_reading(tiny_llama: Any, tokenizer: Any) -> None:
    contexts = ["Question: what is two plus two, as a word in English? Answer:", "Sort these numbers, 23 43 83 44 38:"]
    choices = [" four", " twenty-two of them", " none of the above", " 1 2 3 4 5 6"]
    requests = [ScoringRequest(context, choice) for choice in choices for context in contexts]
    requests.append(ScoringRequest("A", "b"))
    read: list[int] = []
    tiny_llama.register_forward_hook(
        lambda module, args, kwargs, output: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    answers = HuggingFaceModel(tiny_llama, tokenizer).loglikelihood(requests)
    together = sum(read)
    read.clear()
    single = HuggingFaceModel(tiny_llama, tokenizer)
    for request, answer in zip(requests, answers, strict=True):
        (alone,) = single.loglikelihood([request])
        assert answer.logprob == pytest.approx(alone.logprob, abs=1e-4)
        assert (answer.tokens, answer.is_greedy) == (alone.tokens, alone.is_greedy)
    assert together < 0.7 * sum(read)


EXAMPLES = "Sort 3 1 2: 1 2 3\nSort 44 23: 23 44\n"
AFTER = ["Sort 83 38:", "Is it A, B or C?", "A", "Write 425 in French:"] * 3


def few_shot() -> list[str]:
    """Different prompts of different lengths that begin alike."""
    return [f"{EXAMPLES}{number} {text}" for number, text in enumerate(AFTER)]


def test_a_beginning_that_all_prompts_share_is_read_once_and_changes_no_answer(tiny_llama: Any, tokenizer: Any) -> None:
    """Few-shot examples are most of a prompt: who loses this pays for them once an item."""
    read: list[int] = []
    tiny_llama.register_forward_hook(
        lambda module, args, kwargs, output: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    asked = [GenerationRequest(prompt, 8) for prompt in few_shot()]
    pairs = [ScoringRequest(prompt, choice) for prompt in few_shot() for choice in (" four", " twenty-two of them")]
    pairs += [ScoringRequest(prompt, " B") for prompt in few_shot()[:4]]
    model = HuggingFaceModel(tiny_llama, tokenizer)
    generated, scored = model.generate(asked), model.loglikelihood(pairs)
    together = sum(read)
    read.clear()
    alone = HuggingFaceModel(tiny_llama, tokenizer)
    assert generated == [alone.generate([request])[0] for request in asked]
    for request, answer in zip(pairs, scored, strict=True):
        (single,) = alone.loglikelihood([request])
        assert answer.logprob == pytest.approx(single.logprob, abs=1e-4)
        assert (answer.tokens, answer.is_greedy) == (single.tokens, single.is_greedy)
    assert together < 0.5 * sum(read)


def test_a_scored_text_is_never_taken_for_a_shared_beginning(tiny_llama: Any, tokenizer: Any) -> None:
    """Texts that begin alike are scored from their first token on, so that nothing of them may be skipped."""
    texts = [f"{EXAMPLES}{number}" for number in range(12)]
    model = HuggingFaceModel(tiny_llama, tokenizer)
    for text, answer in zip(texts, model.loglikelihood([ScoringRequest("", text) for text in texts]), strict=True):
        expected, _ = by_hand(tiny_llama, [tokenizer.eos_token_id], tokenizer.encode(text))
        assert answer.logprob == pytest.approx(expected, abs=1e-3)


def test_a_model_with_a_sliding_window_answers_as_without_a_shared_beginning(
    random_model: Callable[..., Any], tokenizer: Any
) -> None:
    """Padding after a prefix would count into the window."""
    model = random_model("Mistral", sliding_window=8)
    asked = [GenerationRequest(prompt, 6) for prompt in few_shot()]
    together = HuggingFaceModel(model, tokenizer).generate(asked)
    alone = HuggingFaceModel(model, tokenizer)
    assert together == [alone.generate([request])[0] for request in asked]


def test_layers_that_go_to_the_quicker_library_answer_the_same(
    random_model: Callable[..., Any], tokenizer: Any
) -> None:
    """Else a score would depend on the processor by more than rounding."""
    model = random_model(hidden_size=256, intermediate_size=1024, initializer_range=0.1)
    together = HuggingFaceModel(model, tokenizer).loglikelihood([ScoringRequest(*pair) for pair in PAIRS])
    for (context, continuation), answer in zip(PAIRS, together, strict=True):
        before = tokenizer.encode(context.rstrip()) or [tokenizer.eos_token_id]
        whole = tokenizer.encode(context + continuation)
        expected, greedy = by_hand(model, before, whole[len(before) if context else 0 :])
        assert answer.logprob == pytest.approx(expected, abs=1e-4) and answer.is_greedy == greedy


TEXT = " ".join(context + continuation for context, continuation in PAIRS)
OF_ALL_LENGTHS = [TEXT[number : number + 3 + 5 * (number % 18)].strip() for number in range(36)]


@pytest.mark.cases(2)
@pytest.mark.parametrize("beginning", ["", "Sort 3 1 2: 1 2 3 Sort "], ids=["nothing shared", "a shared beginning"])
@pytest.mark.parametrize(
    "settings", [("Llama", {}), ("Mistral", {"sliding_window": 8})], ids=["whole context", "sliding window"]
)
def test_prompts_of_different_lengths_are_read_apart_and_written_together(
    random_model: Callable[..., Any], tokenizer: Any, beginning: str, settings: tuple[str, dict[str, Any]]
) -> None:
    """Padding is paid for like tokens, and a batch that ends with few rows like a full one."""
    kind, more = settings
    model = random_model(kind, max_position_embeddings=128, **more)
    asked = [GenerationRequest(beginning + prompt, 6) for prompt in OF_ALL_LENGTHS]
    pairs = [
        ScoringRequest(beginning + prompt, text) for prompt in OF_ALL_LENGTHS for text in (" four", " two experts")
    ]
    texts = [ScoringRequest("", prompt) for prompt in OF_ALL_LENGTHS]
    together, alone = HuggingFaceModel(model, tokenizer), HuggingFaceModel(model, tokenizer)
    assert together.generate(asked) == [alone.generate([request])[0] for request in asked]
    for requests in (pairs, texts):
        for request, answer in zip(requests, together.loglikelihood(requests), strict=True):
            (single,) = alone.loglikelihood([request])
            assert answer.logprob == pytest.approx(single.logprob, abs=1e-3)
            assert (answer.tokens, answer.is_greedy) == (single.tokens, single.is_greedy)
    read: list[tuple[int, ...]] = []
    model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together.generate(asked)
    prompts = [shape for shape in read if shape[0] > 1 and shape[1] > 1]
    steps = [shape for shape in read if shape[1] == 1]
    assert max(rows for rows, _ in steps) == len(asked), "one batch is written"
    if kind == "Llama":
        longest = max(length for _, length in prompts)
        assert len(prompts) > 1 and sum(rows * length for rows, length in prompts) < 0.9 * len(asked) * longest
    else:
        assert len(prompts) == 1, "its cache cannot be joined"


def test_a_generated_batch_is_bounded_by_its_tokens(tiny_llama: Any, tokenizer: Any) -> None:
    """Else long prompts would fill the memory."""
    rows: list[int] = []
    tiny_llama.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    asked = [GenerationRequest(prompt, 6) for prompt in OF_ALL_LENGTHS]
    bounded = HuggingFaceModel(tiny_llama, tokenizer, max_tokens=150).generate(asked)
    assert max(rows) < 150 / 7
    assert bounded == HuggingFaceModel(tiny_llama, tokenizer).generate(asked)


@pytest.mark.parametrize("stop", ["<turn>", "<turn> A", "3<turn>"])
def test_a_stop_string_may_have_a_special_token_in_it(tokenizer: Any, stop: str) -> None:
    """Experts end their turns with a token that may be none of the base's ends, and write on after it."""
    from copy import deepcopy

    marked = deepcopy(tokenizer)
    marked.add_special_tokens({"additional_special_tokens": ["<turn>", "<other>"]})
    tokens = marked.encode("Sort<other> 3<turn> A, B or C?")
    state = GenerationState(GenerationRequest("", 32, ("never", stop)), marked, Tokenization(marked), ())
    written = 0
    while not state.done:
        state.append(tokens[written])
        written += 1
    assert written == len(marked.encode("Sort<other> 3<turn>" + " A" * stop.endswith("A")))
    assert state.generation() == Generation("Sort " + "3" * (not stop.startswith("3")), written, "stop")


def test_answers_to_prompts_that_lost_their_beginning_say_so(tiny_llama: Any, tokenizer: Any) -> None:
    """The question may stand there."""
    model = HuggingFaceModel(tiny_llama, tokenizer, max_length=8)
    written = model.generate([GenerationRequest(prompt, 2) for prompt in (PROMPTS[0], "A")])
    assert [one.shortened for one in written] == [True, False]
    asked = [ScoringRequest(PROMPTS[2], " 23"), ScoringRequest("", " ".join(PROMPTS)), ScoringRequest("A", " 2")]
    assert [one.shortened for one in model.loglikelihood(asked)] == [True, False, False], "windows leave nothing out"
