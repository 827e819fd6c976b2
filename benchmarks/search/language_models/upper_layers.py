"""Answers read off the last layers of a Llama or Gemma alone: below, every merge of LoRAs of those layers is the same.

The items of a skill begin with the same tokens. They are laid out as one sequence, those tokens once and then each
item's own, and a mask has an item see the beginning and itself. The states below the first layer with a LoRA are
computed once. So a merge of ten layers of SmolLM2-135M is asked 120 items in about a second of one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.search.answer_margins import Reference

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Items in one sequence: ``tokens``, their ``positions``, ``mask`` (``length x length``, True where a place sees
    another), and each item's ``places`` from the last token of its prompt to the last of its answer."""

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    places: tuple[range, ...]


def laid_out(asked: Sequence[Reference], shared: int) -> Layout:
    """Items that have their first ``shared`` tokens in common."""
    tokens, positions = list(asked[0].prompt[:shared]), list(range(shared))
    owner = [-1] * shared
    places = []
    for number, one in enumerate(asked):
        own = [*one.prompt[shared:], *one.answer]
        last = len(tokens) + len(own)
        places.append(range(last - len(one.answer) - 1, last))
        tokens += own
        positions += range(shared, shared + len(own))
        owner += [number] * len(own)
    of, place = torch.tensor(owner), torch.arange(len(tokens))
    mask = (place[:, None] >= place) & ((of == -1) | (of[:, None] == of))
    return Layout(torch.tensor(tokens), torch.tensor(positions), mask, tuple(places))


def shared_length(asked: Sequence[Reference]) -> int:
    """How many tokens all prompts begin with; one at least stays each item's own."""
    first, last = min(one.prompt for one in asked), max(one.prompt for one in asked)
    same = [one == other for one, other in zip(first, last, strict=False)]
    return min([*[place for place, equal in enumerate(same) if not equal], *[len(one.prompt) - 1 for one in asked]])


def run_layers(model: Any, layers: Sequence[Any], states: torch.Tensor, layout: Layout) -> torch.Tensor:
    """States (``length x width``) after some decoder layers of a ``model`` (the part without its head).

    A Gemma turns positions otherwise in layers that see a window; no item here is longer than the window.
    """
    length = len(layout.tokens)
    hidden = states[None]
    mask = torch.zeros(1, 1, length, length, dtype=hidden.dtype).masked_fill(
        ~layout.mask, torch.finfo(hidden.dtype).min
    )
    kinds = {getattr(layer.self_attn, "layer_type", None) for layer in layers}
    rotations = {
        kind: model.rotary_emb(hidden, layout.positions[None], *([] if kind is None else [kind])) for kind in kinds
    }
    for layer in layers:
        hidden = layer(
            hidden, attention_mask=mask, position_ids=layout.positions[None], use_cache=False,
            position_embeddings=rotations[getattr(layer.self_attn, "layer_type", None)],
        )  # fmt: skip
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return hidden[0]


class UpperLayers:
    """``skills`` asked of the layers from ``first`` on of a causal ``model``, whose lower layers never change."""

    def __init__(self, model: Any, first: int, skills: Sequence[Sequence[Reference]], ends: Sequence[int]) -> None:
        self.model, self.first, self.skills, self.ends = model, first, skills, list(ends)
        self.layouts = [laid_out(asked, shared_length(asked)) for asked in skills]
        with torch.inference_mode():
            body = model.model
            self.states = [
                run_layers(body, body.layers[:first], body.embed_tokens(layout.tokens), layout)
                for layout in self.layouts
            ]

    @torch.inference_mode()
    def read(self) -> tuple[list[Array], list[Array]]:
        """Of every skill the items' margins (as ``answer_margins``), and the mean negative log-likelihood of the
        answer's tokens."""
        margins, losses = [], []
        for asked, layout, states in zip(self.skills, self.layouts, self.states, strict=True):
            body = self.model.model
            hidden = run_layers(body, body.layers[self.first :], states, layout)
            at = [place for places in layout.places for place in places]
            logits = self.model.lm_head(body.norm(hidden[at])).float()
            own = [
                self._item(part, one)
                for part, one in zip(logits.split([len(p) for p in layout.places]), asked, strict=True)
            ]
            margins.append(np.array([margin for margin, _ in own]))
            losses.append(np.array([loss for _, loss in own]))
        return margins, losses

    def _item(self, logits: torch.Tensor, one: Reference) -> tuple[float, float]:
        answer = torch.tensor(one.answer)
        steps = torch.arange(len(answer))
        total = logits.logsumexp(1)[:-1]
        right = logits[steps, answer]
        end = logits[-1, self.ends].max()
        others = logits.clone()
        others[steps, answer] = -torch.inf
        others[-1, self.ends] = -torch.inf
        margin = (torch.cat([right, end[None]]) - others.max(1).values).min()
        return float(margin), float((total - right).mean())
