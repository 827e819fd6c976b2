"""Generation by transformers' own loop, for models that read no padded prompts or keep states of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.optimizer.errors import EvaluationError

CAUSAL: Mapping[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
"""The likeliest token at each step, whatever the checkpoint's own generation settings prefer."""


def write(
    model: Any, inputs: Mapping[str, torch.Tensor], states: Sequence[GenerationState], settings: Mapping[str, Any]
) -> None:
    """Fill in the states of a batch, one a row of ``inputs`` (what ``model.generate`` takes).

    ``settings`` go before those of the model's own ``generation_config``. Raises ``EvaluationError`` for logits that
    are not numbers.
    """
    from transformers import GenerationConfig

    if all(state.done for state in states):
        return
    configured = model.generation_config.pad_token_id

    def check(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # A step's largest logit is NaN as soon as one of them is.
        if not bool(torch.isfinite(scores.max(1).values).all()):
            raise EvaluationError("the merged model's logits are not finite", kind="not finite")
        if all(state.request.temperature == 0 for state in states):
            return scores
        chosen = torch.full_like(scores, -torch.inf)
        for row, state in enumerate(states):
            chosen[row, 0 if state.done else state.choose(scores[row])] = 0.0
        return chosen

    def stop(tokens: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        for state, token in zip(states, tokens[:, -1].tolist(), strict=True):
            if not state.done:
                state.append(token)
        return torch.tensor([state.done for state in states], device=tokens.device)

    model.generate(
        **inputs,
        generation_config=GenerationConfig(
            **settings,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(state.request.most_tokens for state in states),
            pad_token_id=0 if configured is None else configured,  # what follows the end of a row is not read
        ),
        logits_processor=[check],
        stopping_criteria=[stop],
    )
