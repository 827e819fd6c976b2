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
