"""A text's own tokens with their log-probabilities: what ``echo`` with ``logprobs`` answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergefront.optimizer.errors import EvaluationError, UserError

if TYPE_CHECKING:
    from mergefront.adapters.local.model import HuggingFaceModel


@dataclass(frozen=True)
class Echo:
    """Per token: its text, where it begins (characters), its log-probability and the most likely token's text
    and log-probability there (None for the first token, which nothing comes before)."""

    tokens: list[str]
    offsets: list[int]
    logprobs: list[float | None]
    best: list[tuple[str, float] | None]


def echo(model: HuggingFaceModel, text: str) -> Echo:
    """Score ``text`` in one pass; raises ``EvaluationError`` when it is too long or its scores are not finite."""
    import torch

    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise UserError("this pool's tokenizer cannot tell where tokens begin, so that echo is not available")
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    if not ids:
        raise UserError("the prompt has no tokens")
    if len(ids) > model.max_length:
        raise EvaluationError(
            f"the prompt has {len(ids)} tokens, the model reads {model.max_length} at most", kind="too long"
        )
    with torch.inference_mode():
        rows = model.model(input_ids=torch.tensor([ids], device=model.model.device)).logits[0, :-1].float()
        scores = rows.log_softmax(-1)
        own = scores.gather(1, torch.tensor(ids[1:], device=scores.device)[:, None])[:, 0].double().cpu()
        highest, which = scores.max(-1)
    if not bool(torch.isfinite(own).all()):
        raise EvaluationError("the merged model's log-probabilities are not finite", kind="not finite")
    likeliest = [tokenizer.decode([token]) for token in which.tolist()]
    best: list[tuple[str, float] | None] = [None, *zip(likeliest, highest.double().cpu().tolist(), strict=True)]
    return Echo(
        [tokenizer.decode([token]) for token in ids], [start for start, _ in spans], [None, *own.tolist()], best
    )
