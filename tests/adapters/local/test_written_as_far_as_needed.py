"""Exact match by reading: the same scores as by writing, for a fraction of the passes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import GenerationRequest
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.known_metrics import exact_match
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions

WORDS = ["Sort", "3", "1", "2:", "Write", "425", "in French", "naïve", "Über", "A", "The", "answer\n", "is", "Q:", "四"]
OPTIONS = [
    MetricOptions(max_new_tokens=6),
    MetricOptions(max_new_tokens=5, stop=(), normalise=True),
    MetricOptions(max_new_tokens=4, stop=("e", "\n"), delimiter=""),
    MetricOptions(max_new_tokens=1),
    MetricOptions(max_new_tokens=6, stop=("\n", " ", "e")),
    MetricOptions(max_new_tokens=6, stop=("\n", " "), skip_blank_start=False),
    MetricOptions(max_new_tokens=8, stop=(" ", "\n\n", "\n", "Q"), normalise=True),
]


def some_items(model: HuggingFaceModel, options: MetricOptions, count: int, seed: int) -> list[Item]:
    """Items whose accepted answers are what the model writes, the beginning of it, more than it, or nothing like it."""
    chance = random.Random(seed)
    prompts = [
        f"{' '.join(chance.choices(WORDS, k=chance.randint(0, 6)))} {number}{chance.choice(['', ' '])}"
        for number in range(count)
    ]
    written = model.generate([GenerationRequest(one, options.max_new_tokens, options.stop) for one in prompts])
    items = []
    for number, (prompt, one) in enumerate(zip(prompts, written, strict=True)):
        text = one.text.strip() or "x"
        kinds = [
            text,
            text.upper(),
            f"the {text}.",
            text[: 1 + len(text) // 2],
            f"{text}s",
            chance.choice(WORDS).strip(),
        ]
        items.append(Item(str(number), prompt, tuple(chance.sample(kinds, chance.randint(1, 3)))))
    return items


def perturbed(model: Any, seed: int) -> None:
    """Another merge: weights some way off, some tokens likelier than before, an end among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        model.lm_head.weight[model.config.eos_token_id] += 0.02 * seed


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_scores_by_reading_are_those_by_writing(tiny_llama: Any, tokenizer: Any, seed: int) -> None:
    """A search by wrong scores, and reports that no other harness finds again."""
    perturbed(tiny_llama, seed)
    model = HuggingFaceModel(tiny_llama, tokenizer, read_at_once=(None, 4096)[seed % 2])
    for options in OPTIONS:
        items = some_items(model, options, 120, seed)
        read, written = CountedModel(model), CountedModel(model, writes_all=True)
        scores, _ = exact_match(read, items, options)
        assert scores == exact_match(written, items, options)[0]
        assert read.generated_tokens <= written.generated_tokens
        assert 0 < sum(scores) < len(scores)


@pytest.mark.parametrize("seed", range(2))
def test_a_margin_is_how_firmly_an_answer_was_right_or_wrong(tiny_llama: Any, tokenizer: Any, seed: int) -> None:
    """Races would take a hopeless candidate for one that nearly has it."""
    perturbed(tiny_llama, seed)
    model = HuggingFaceModel(tiny_llama, tokenizer, read_at_once=(None, 4096)[seed])
    options = MetricOptions(max_new_tokens=6, stop=())
    items = some_items(model, options, 40, seed)
    items += [Item(f"wrong {place}", f"Write {place}", (WORDS[place % len(WORDS)].strip(),)) for place in range(40)]
    scores, margins = exact_match(CountedModel(model), items, options)
    assert margins is not None
    assert all(margin == 0 or (margin > 0) == (score == 1) for score, margin in zip(scores, margins, strict=True))
    alone = HuggingFaceModel(tiny_llama, tokenizer, read_at_once=1)
    checked = 0
    for item, score, margin in zip(items, scores, margins, strict=True):
        assert exact_match(CountedModel(alone), [item], options) == ([score], [pytest.approx(margin, abs=1e-4)])
        prompt, text = (tuple(tokenizer(one)["input_ids"]) for one in (item.prompt, f"{item.prompt} {item.answers[0]}"))
        if score or len(item.answers) > 1 or item.prompt.endswith(" ") or text[: len(prompt)] != prompt:
            continue
        with torch.inference_mode():
            logits = tiny_llama(torch.tensor([text])).logits[0, len(prompt) - 1 : -1]
        right = torch.tensor(text[len(prompt) :])[:, None]
        leads = (logits.gather(1, right) - logits.scatter(1, right, -torch.inf).amax(1, keepdim=True))[:, 0]
        if bool((leads < 0).any()) and len(leads) <= options.max_new_tokens:
            assert margin == pytest.approx(float(leads[leads < 0][0]), abs=1e-4)
            checked += 1
    assert checked > 5
    assert not exact_match(CountedModel(model), items, MetricOptions(max_new_tokens=6, margins=False))[1]


@pytest.mark.long
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_near_ties_of_low_precision_are_written(tiny_llama: Any, tokenizer: Any, precision: torch.dtype) -> None:
    """The same merge would have other scores by reading, where a token is the likeliest by the last digit."""
    perturbed(tiny_llama, 1)
    live = tiny_llama.to(precision)
    passes: list[int] = []
    live.register_forward_hook(lambda *_: passes.append(1))
    model = HuggingFaceModel(live, tokenizer, read_at_once=4096)
    for options in OPTIONS[:3]:
        items = some_items(model, options, 60, 1)
        started = len(passes)
        scores, _ = exact_match(CountedModel(model), items, options)
        by_reading = len(passes) - started
        together = exact_match(CountedModel(model, writes_all=True), items, options)[0]
        assert by_reading < 2 * (len(passes) - started - by_reading) + 20, "near ties are few"
        # Written alone or in a batch, an answer has its own near ties.
        alone = [exact_match(CountedModel(model, writes_all=True), [item], options)[0][0] for item in items]
        settled = [place for place, score in enumerate(alone) if score == together[place]]
        assert [scores[place] for place in settled] == [alone[place] for place in settled]
        assert len(settled) > 50 and 0 < sum(scores) < len(scores)
