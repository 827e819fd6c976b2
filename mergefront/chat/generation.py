"""One answer of a live model, handed on as it is written."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mergefront.adapters.local.limits import end_tokens
from mergefront.optimizer.errors import EvaluationError

Show = Callable[[str], None]
"""Called with each further piece of an answer."""


@dataclass(frozen=True)
class Sampling:
    """How answers are written: at most ``max_new_tokens``, the likeliest ones at ``temperature`` 0."""

    temperature: float = 0.0
    max_new_tokens: int = 512


@dataclass(frozen=True)
class Answer:
    """The text of an answer; ``finish`` says whether it ended by itself, at the limit or because the user ended it.

    ``tokens`` is None where a server does not count them.
    """

    text: str
    tokens: int | None
    seconds: float
    finish: Literal["stop", "length", "interrupted"]


def write_answer(model: Any, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, show: Show) -> Answer:
    """Continue ``prompt`` by transformers' own loop, by the settings of the checkpoint's ``generation_config``.

    Ctrl-C ends the answer, and what is there is returned. Raises ``EvaluationError`` for logits that are not numbers.
    """
    import torch

    started = time.perf_counter()
    shown = _GrowingText(tokenizer, show)
    ends = end_tokens(model, tokenizer)
    settings = copy.deepcopy(model.generation_config)
    is_drawn = sampling.temperature > 0
    drawing = {"temperature": sampling.temperature} if is_drawn else {"temperature": None, "top_p": None, "top_k": None}
    settings.update(
        do_sample=is_drawn,
        num_beams=1,
        max_length=None,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sorted(ends) or None,
        pad_token_id=settings.pad_token_id if settings.pad_token_id is not None else min(ends, default=0),
        **drawing,
    )

    def check(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not bool(torch.isfinite(scores.max())):
            raise EvaluationError("the merged model's logits are not finite", kind="not finite")
        return scores

    def look(tokens: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
        shown.append(int(tokens[0, -1]))
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

    inputs = torch.tensor([list(prompt)], device=model.device)
    finish: Literal["stop", "length", "interrupted"]
    try:
        with torch.inference_mode():
            model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=settings,
                logits_processor=[check],
                stopping_criteria=[look],
            )
        finish = "stop" if shown.tokens and shown.tokens[-1] in ends else "length"
    except KeyboardInterrupt:
        finish = "interrupted"
    return Answer(shown.end(), len(shown.tokens), time.perf_counter() - started, finish)


class _GrowingText:
    """Tokens as text that only grows: what the next token may still change is held back."""

    def __init__(self, tokenizer: Any, show: Show) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
        self._show = show
        self._shown = ""

    def append(self, token: int) -> None:
        self.tokens.append(token)
        # A character may have several tokens, and decoding may take out a space before the next one.
        self._show_up_to(self._text().rstrip(" \n\t\ufffd"))

    def end(self) -> str:
        """The whole text, all of which is shown now."""
        text = self._text()
        self._show_up_to(text)
        return text

    def _text(self) -> str:
        return str(self._tokenizer.decode(self.tokens, skip_special_tokens=True))

    def _show_up_to(self, text: str) -> None:
        if len(text) > len(self._shown) and text.startswith(self._shown):
            self._show(text[len(self._shown) :])
            self._shown = text
