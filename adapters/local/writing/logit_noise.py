"""How far a logit of low precision may be off, by how its sum is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from mergefront.adapters.language_model import Tokens

SAFETY = 2.0
"""Times the largest difference that was seen (chosen by hand)."""
RIVALS = 8
"""Tokens at each place, the likeliest ones, of which another may become the likeliest (chosen by hand)."""
ROWS = 8
"""Texts that it is measured with, and tokens of each (chosen by hand)."""


def measured_noise(
    read: Callable[[], tuple[torch.Tensor, torch.Tensor, Any]],
    forward: Callable[[torch.Tensor, torch.Tensor, Any], Any],
    following: Sequence[Tokens],
) -> float:
    """The lead that a logit needs to be the largest both in a pass over a text and token by token.

    ``read`` reads as many prompts and gives the logits after them (``rows x vocabulary``), their mask and a cache,
    ``forward`` takes more tokens. It is never less than what rounding a logit to its precision changes.
    """
    width = min(ROWS, *map(len, following))
    logits, mask, cache = read()
    tokens = torch.tensor([one[:width] for one in following], device=mask.device)
    ones = mask.new_ones(mask.shape[0], width)
    at_once = forward(tokens, torch.cat([mask, ones], 1), cache).logits.float()
    _, mask, cache = read()
    largest, rivals = at_once.topk(min(RIVALS, at_once.shape[2]))
    seen = 0.0
    for place in range(width):
        mask = torch.cat([mask, ones[:, :1]], 1)
        output = forward(tokens[:, place : place + 1], mask, cache)
        cache = output.past_key_values
        alone = output.logits[:, -1].float().gather(1, rivals[:, place])
        change = (alone[:, :1] - alone) - (largest[:, place, :1] - largest[:, place])
        seen = max(seen, float(change.abs().max()))
    return max(SAFETY * seen, torch.finfo(logits.dtype).eps * float(largest.abs().max()))
