"""By how much a causal model would write the reference answers, without writing anything.

Greedy generation gives the reference answer if each of its tokens, and then an end, is the likeliest after those
before it. All of that is in one pass over prompt and answer. Another spelling of the same text in tokens would count as
right when generated and is wrong here; ``record_smollm --check`` counts how often that happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mergefront.adapters.local.linear_layers import fast_linear_layers
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tokenization import Tokenization


@dataclass(frozen=True)
class Reference:
    """An item's prompt and its answer in tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def references(tokenizer: Any, items: Sequence[Item], delimiter: str = " ") -> list[Reference]:
    """Of items with one accepted answer each."""
    pairs = [(item.prompt, delimiter + answer) for item in items for (answer,) in [item.answers]]
    return [Reference(prompt, answer) for prompt, answer in Tokenization(tokenizer).pairs(pairs)]


def end_tokens(tokenizer: Any, stop: str = "\n") -> list[int]:
    """Tokens after which an answer is complete: the end token, and those that bring a stop and no text before it."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))], skip_special_tokens=True)
    stopping = [token for token, text in enumerate(texts) if stop in text and not text.split(stop)[0].strip()]
    return sorted({tokenizer.eos_token_id, *stopping})


@torch.inference_mode()
def answer_margins(model: Any, asked: Sequence[Reference], ends: Sequence[int], rows: int = 30) -> NDArray[np.float64]:
    """One margin an item, in logits: the least, over the answer's tokens and its end, of the right token's (of the
    likeliest end's) less the largest other one. ``model`` is a Hugging Face causal model; ``rows`` make a batch."""
    found = np.empty(len(asked))
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt) + len(asked[i].answer))
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        found[batch] = _batch_margins(model, [asked[i] for i in batch], ends)
    return found


def _batch_margins(model: Any, batch: Sequence[Reference], ends: Sequence[int]) -> list[float]:
    length = max(len(one.prompt) + len(one.answer) for one in batch)
    # The filler comes after what is read, so that nothing attends to it.
    tokens = torch.tensor([_filled(one.prompt + one.answer, length) for one in batch])
    at_row = [row for row, one in enumerate(batch) for _ in range(len(one.answer) + 1)]
    at_place = [len(one.prompt) - 1 + step for one in batch for step in range(len(one.answer) + 1)]
    with fast_linear_layers(model):
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[at_row, at_place]).float()
    right = [tuple(following) for one in batch for following in [*((token,) for token in one.answer), ends]]
    position = torch.tensor([place for place, several in enumerate(right) for _ in several])
    token = torch.tensor([token for several in right for token in several])
    best = torch.full((len(right),), -torch.inf).scatter_reduce_(0, position, logits[position, token], "amax")
    logits[position, token] = -torch.inf
    margins = best - logits.max(1).values
    return [float(part.min()) for part in margins.split([len(one.answer) + 1 for one in batch])]


def _filled(tokens: tuple[int, ...], length: int) -> list[int]:
    return [*tokens, *tokens[-1:] * (length - len(tokens))]
