"""What bounds a request and a batch: the longest input, the tokens that end a text, memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from mergefront.adapters.evaluator import out_of_memory
from mergefront.optimizer.errors import UserError

_log = logging.getLogger(__name__)
Row = TypeVar("Row")

MAX_LOGITS = 2**27
"""Most float32 logits that one scoring batch gathers: 512 MiB."""


def longest_input(model: Any, tokenizer: Any) -> int:
    """The model's longest input in tokens; 2048 when neither the model nor its tokenizer says."""
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        value = getattr(model.config.get_text_config(), name, None)
        if isinstance(value, int) and value > 0:
            return value
    value = getattr(tokenizer, "model_max_length", None)
    return value if isinstance(value, int) and value < 10**9 else 2048


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a generation: those of the generation settings and the tokenizer's own.

    Raises ``UserError`` for what is no token.
    """
    settings = getattr(model, "generation_config", None)
    configured = getattr(settings, "eos_token_id", None)
    several = configured if isinstance(configured, (list, tuple)) else [configured]
    for token in several:
        if token is not None and type(token) is not int:
            raise UserError(
                f"generation_config.json: eos_token_id is {configured!r:.60}; it must be a token's number, or several"
            )
    return frozenset(token for token in (*several, tokenizer.eos_token_id) if token is not None)


def refuse_likelihoods(config: Any, kind: str) -> None:
    """Raises ``UserError`` for a model whose tokens see those that follow: no pass gives the likelihood of a text."""
    if reads_both_ways(config):
        raise UserError(
            f"{kind} reads a text in both directions, so that no likelihoods of answers can be had of it; use a metric "
            "of generated answers, such as exact_match"
        )


def reads_both_ways(config: Any) -> bool:
    """Whether the tokens of one pass see those that follow (PaliGemma)."""
    return getattr(config.get_text_config(), "use_bidirectional_attention", None) in (True, "all")


def halving(rows: Sequence[Row], length: int, most: int, run: Callable[[list[Row]], None]) -> int:
    """Run a batch of rows of at most ``length`` tokens; one that does not fit into memory is run by halves.

    Returns how many tokens a batch may have from now on: ``most``, or as many as a half had.
    """
    try:
        run(list(rows))
        return most
    except Exception as error:
        if not out_of_memory(error) or len(rows) == 1:
            raise
    # Outside of the handler, whose error holds on to what the batch had made.
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    middle = (len(rows) + 1) // 2
    most = min(most, middle * length)
    _log.warning("a batch of %d rows did not fit into memory; batches have at most %d tokens now", len(rows), most)
    for half in (rows[:middle], rows[middle:]):
        most = halving(half, length, most, run)
    return most
