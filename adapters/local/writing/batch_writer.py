"""Writing a batch of answers, and reading ahead where a draft says how one may go on.

A pass reads the last token of each answer and, of those that have so far been written like one of their drafts, some
tokens of that draft: all that turn out to be the likeliest are written in one pass, as speculative decoding verifies
guesses. How many are read at once follows from the batch: as many tokens as a pass reads in about the time of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mergefront.adapters.language_model import GenerationRequest, Margins, Tokens
from mergefront.adapters.local.key_value_cache import keeps_every_position
from mergefront.adapters.local.limits import MAX_LOGITS
from mergefront.adapters.local.writing.generation_state import GenerationState
from mergefront.optimizer.errors import EvaluationError

Forward = Callable[[torch.Tensor, torch.Tensor, Any], Any]
"""A pass over tokens (``rows x width``) under a mask of all positions (``rows x length``), after a cache."""


@dataclass
class _Row:
    """An answer in its batch.

    ``drafts`` are those that it may still be, ``ahead`` the tokens that were read behind its last one, as far as a
    draft goes. ``lead`` is the least by which a logit was the largest, ``shortfall`` by how much one of a draft's was
    not (at most 0) where none of the drafts went on.
    """

    state: GenerationState
    drafts: Sequence[Tokens]
    ahead: Tokens = ()
    is_unclear: bool = False
    lead: float = math.inf
    shortfall: float | None = None

    @property
    def is_over(self) -> bool:
        return self.state.done or self.is_unclear

    def following(self, most: int) -> Tokens:
        """What a draft says comes next, at most ``most`` tokens."""
        return next(iter(self.drafts), ())[len(self.state.tokens) :][:most]

    def write(self, likeliest: Sequence[int], leads: Sequence[float], noise: float, ends: Tokens) -> _Written:
        """Append tokens, given the likeliest after the last one and after each ahead, and by how much they lead.

        A token that was read ahead counts if its logit leads by ``noise`` at least: otherwise writing might choose
        another, and the row is unclear. ``ends`` are tokens that may follow a whole draft.
        """
        for place, token in enumerate(likeliest):
            if self.ahead and leads[place] < noise:
                self.is_unclear = True
                return _Written(place)
            self.lead = min(self.lead, leads[place])
            drafts, written = self.drafts, len(self.state.tokens)
            self.state.append(token)
            self.drafts = [draft for draft in drafts if draft[written : written + 1] == (token,)]
            if drafts and not self.drafts:
                right = {end for draft in drafts for end in draft[written : written + 1] or ends}
                return _Written(place, tuple(right - {token}) if token not in right else ())
            if self.state.done or place == len(self.ahead) or token != self.ahead[place]:
                return _Written(place)
        raise AssertionError("a row has one more likeliest token than tokens ahead")


@dataclass(frozen=True)
class _Written:
    """How many of the tokens ahead hold; and where no draft goes on like that, the tokens that would have been right at
    this place."""

    held: int = 0
    right: Tokens = ()


@dataclass
class BatchWriter:
    """Writes batches with a model's ``forward``; ``noise`` is how far a logit may be off, however it is added up.

    ``at_once`` are the most tokens of a batch that a pass reads where some are read ahead, ``drafts`` the tokens that a
    request's answer may well be, ``ends`` those that may follow a whole draft.
    """

    forward: Forward
    noise: float
    at_once: int
    drafts: Mapping[GenerationRequest, Sequence[Tokens]] = field(default_factory=dict)
    ends: Tokens = ()

    def write(
        self, states: Sequence[GenerationState], logits: torch.Tensor, mask: torch.Tensor, cache: Any
    ) -> list[int]:
        """Finish the ``states``, of which the model has read the prompts: ``logits`` (``rows x vocabulary``) are those
        after them, ``mask`` (``rows x length``) and ``cache`` what it keeps.

        Returns the places of those that have to be written without drafts, from their prompts on. Raises
        ``EvaluationError`` for logits that are not numbers.
        """
        rows = [_Row(state, self.drafts.get(state.request, ())) for state in states]
        longest = max(state.request.most_tokens for state in states)
        active, logits = rows, logits[:, None]
        while True:
            held = self._append(active, logits)
            left = [place for place, row in enumerate(active) if not row.is_over]
            if not left:
                for row in rows:
                    if row.state.request.wanted is not None and row.state.tokens:
                        row.state.margins = Margins(row.lead, row.shortfall)
                return [place for place, row in enumerate(rows) if row.is_unclear]
            width = logits.shape[1]
            if width > 1:  # what was read ahead and did not hold is behind no later token
                mask[:, -width:] = (
                    torch.arange(width, device=mask.device) <= torch.tensor(held, device=mask.device)[:, None]
                )
            if 4 * len(left) <= 3 * len(active) and hasattr(cache, "batch_select_indices"):
                places = torch.tensor(left, device=mask.device)
                cache.batch_select_indices(places)
                mask, active = mask[places], [active[place] for place in left]
            most = max(0, min(self.at_once, MAX_LOGITS // logits.shape[2]) // len(active) - 1)
            if not keeps_every_position(cache, mask.shape[1] + 1 + most + longest):
                most = 0
            for row in active:
                row.ahead = row.following(most) if most and not row.is_over else ()
            width = 1 + max(len(row.ahead) for row in active)
            # The filler comes after what is read, so that nothing attends to it.
            read = [(row.state.tokens[-1], *row.ahead) for row in active]
            tokens = torch.tensor([one + one[-1:] * (width - len(one)) for one in read], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(active), width)], 1)
            output = self.forward(tokens, mask, cache)
            logits, cache = output.logits, output.past_key_values

    def _append(self, rows: Sequence[_Row], logits: torch.Tensor) -> list[int]:
        """Write what the logits (``rows x width x vocabulary``) say; how many of the tokens ahead hold, by row."""
        best, chosen = logits.float().topk(2)
        # A step's largest logit is NaN as soon as one of them is.
        if not bool(torch.isfinite(best[..., 0]).all()):
            raise EvaluationError("the merged model's logits are not finite", kind="not finite")
        for place, row in enumerate(rows):
            if not row.is_over and row.state.request.temperature > 0:
                chosen[place, 0, 0] = row.state.choose(logits[place, 0])
        likeliest = chosen[..., 0].tolist()
        leads = (best[..., 0] - best[..., 1]).tolist()
        written = [
            _Written() if row.is_over else row.write(tokens, lead, self.noise, self.ends)
            for row, tokens, lead in zip(rows, likeliest, leads, strict=True)
        ]
        places = [(place, one.held, token) for place, one in enumerate(written) for token in one.right]
        if places:
            row_at, position, token_at = torch.tensor(places, device=logits.device).unbind(1)
            short = (logits[row_at, position, token_at].float() - best[row_at, position, 0]).tolist()
            for (place, _, _), shortfall in zip(places, short, strict=True):
                known = rows[place].shortfall
                rows[place].shortfall = shortfall if known is None else max(known, shortfall)
        return [one.held for one in written]
