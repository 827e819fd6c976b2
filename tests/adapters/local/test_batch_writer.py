"""Answers that are read ahead are those that would have been written token by token."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from mergefront.adapters.language_model import GenerationRequest, Tokens
from mergefront.adapters.local.writing.batch_writer import BatchWriter
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.adapters.local.writing.logit_noise import measured_noise
from mergefront.adapters.tokenization import Tokenization

ROWS, PROMPT, MOST = 24, 5, 10
Drafts = Mapping[GenerationRequest, Sequence[Tokens]]


class Writer:
    """Writes after prompts of random tokens with a model; ``passes`` are the widths of the passes behind them.

    ``rounding`` is by how much logits differ between passes over one token and over several, as in low precision.
    """

    def __init__(self, model: Any, tokenizer: Any, rounding: float = 0.0) -> None:
        self.errors = rounding * (2 * torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(0)) - 1)
        self.model, self.tokenizer, self.tokenization = model.eval(), tokenizer, Tokenization(tokenizer)
        with torch.no_grad():  # what stands before counts, not the last token alone
            for name, tensor in model.named_parameters():
                tensor *= 6.0 if "self_attn" in name else 1.0
        self.prompts = torch.randint(5, len(tokenizer), (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
        self.requests = [GenerationRequest(str(row), MOST, ()) for row in range(ROWS)]
        self.passes: list[int] = []

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
        self.passes.append(tokens.shape[1])
        positions = (mask.cumsum(1) - 1)[:, -tokens.shape[1] :]
        output = self.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        if tokens.shape[1] > 1:
            output.logits += self.errors
        return output

    def read(self, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, Any]:
        mask = torch.ones_like(self.prompts[:rows])
        read = self.model(input_ids=self.prompts[:rows], attention_mask=mask, use_cache=True)
        return read.logits[:, -1], mask, read.past_key_values

    @torch.inference_mode()
    def write(self, drafts: Drafts, noise: float = 1e-4, at_once: int = 10 * ROWS) -> tuple[list[Tokens], list[int]]:
        """What is written, and the places of the rows that were left unclear."""
        self.passes = []
        states = [GenerationState(one, self.tokenizer, self.tokenization, ()) for one in self.requests]
        unclear = BatchWriter(self.forward, noise, at_once, drafts).write(states, *self.read())
        return [tuple(state.tokens) for state in states], unclear


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("Llama", {}), ("Mistral", {"sliding_window": 28})],
    ids=["whole", "window"],
)
def test_guesses_that_fail_midway_change_nothing(
    random_model: Callable[..., Any], tokenizer: Any, kind: str, settings: dict[str, Any]
) -> None:
    """Tokens that were read and did not hold would colour all that follows them."""
    writer, chance = Writer(random_model(kind, **settings), tokenizer), random.Random(0)
    written, _ = writer.write({})
    assert writer.passes == [1] * (MOST - 1)
    drafts: dict[GenerationRequest, list[Tokens]] = {}
    for request, tokens in zip(writer.requests, written, strict=True):
        for _ in range(chance.randint(0, 2)):
            place = chance.randrange(1, MOST)
            drafts.setdefault(request, []).append((*tokens[:place], 4, *tokens[place + 1 :]))
    assert writer.write(drafts) == (written, [])
    assert max(writer.passes) > 1


def test_right_guesses_take_one_pass(tiny_llama: Any, tokenizer: Any) -> None:
    writer = Writer(tiny_llama, tokenizer)
    written, _ = writer.write({})
    drafts = {request: [tokens] for request, tokens in zip(writer.requests, written, strict=True)}
    assert writer.write(drafts) == (written, [])
    assert writer.passes == [MOST]
    writer.write(drafts, at_once=3 * ROWS)
    assert writer.passes == [3, 3, 3]


def test_what_is_read_ahead_counts_only_where_the_likeliest_token_leads_by_the_noise(
    tiny_llama: Any, tokenizer: Any
) -> None:
    """In bfloat16 a near tie falls otherwise when a text is read than when it is written."""
    writer = Writer(tiny_llama, tokenizer)
    written, _ = writer.write({})
    drafts = {request: [tokens] for request, tokens in zip(writer.requests, written, strict=True)}
    tokens, unclear = writer.write(drafts, noise=0.2)
    assert 0 < len(unclear) < ROWS
    assert all(tokens[row] == written[row] for row in range(ROWS) if row not in unclear)
    assert writer.write(drafts, noise=1e9)[1] == list(range(ROWS))


def test_the_measured_noise_covers_what_reading_changes(tiny_llama: Any, tokenizer: Any) -> None:
    """Scores by reading would be those of another model than is written with."""
    writer = Writer(tiny_llama, tokenizer, rounding=0.2)
    written, _ = writer.write({})
    drafts = {request: [tokens] for request, tokens in zip(writer.requests, written, strict=True)}
    assert writer.write(drafts, noise=0.0)[0] != written
    with torch.inference_mode():
        noise = measured_noise(lambda: writer.read(8), writer.forward, written[:8])
    tokens, unclear = writer.write(drafts, noise=noise)
    assert all(tokens[row] == written[row] for row in range(ROWS) if row not in unclear)
    assert 0.2 < noise < 1 and len(unclear) < ROWS


def test_a_window_that_would_count_what_did_not_hold_is_not_read_ahead(
    random_model: Callable[..., Any], tokenizer: Any
) -> None:
    writer = Writer(random_model("Mistral", sliding_window=8), tokenizer)
    written, _ = writer.write({})
    drafts = {request: [(*tokens[:3], 4)] for request, tokens in zip(writer.requests, written, strict=True)}
    assert writer.write(drafts) == (written, [])
    assert max(writer.passes) == 1
