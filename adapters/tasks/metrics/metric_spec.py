"""What a metric is: how items are put to a model, and a row of the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks.items import Item

Scored = tuple[list[float], list[float] | None]
"""Scores and margins (None: the metric has none), one number per item."""

PROMPT = (("prompt",),)
ANSWER = (("prompt", "answer"),)
TEXT = (*ANSWER, ("text",))

WRITTEN = ("max_new_tokens", "stop", "skip_blank_start")
"""Options of metrics of what a model writes."""
SCORED = ("delimiter",)
"""Options of metrics of how likely texts are."""


@dataclass(frozen=True)
class MetricOptions:
    """How items are put to the model, and how answers are compared.

    ``delimiter`` stands between prompt and answer (None: as the data says, see ``following``); ``stop`` ends a
    generation of at most ``max_new_tokens``, those of white space not before its first other character
    (``skip_blank_start``). ``length_normalised`` divides a choice's log-likelihood by its number of
    characters (lm-eval's acc_norm). ``margins`` asks for the margins of metrics that pay extra for them.
    ``normalise`` compares answers without case, punctuation and articles. ``tolerance`` is how far a number may be
    off, relative to the right one. ``seconds`` (processor time) and ``memory_mb`` bound a model's program.
    """

    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    skip_blank_start: bool = True
    delimiter: str | None = None
    length_normalised: bool = False
    margins: bool = False
    normalise: bool = False
    tolerance: float = 0.0
    seconds: float = 5.0
    memory_mb: int = 512


@dataclass(frozen=True)
class MetricSpec:
    """One row of the registry: ``verb`` is what a model must be able to do, ``required`` the sets of
    keys of which every item must have one, ``options`` the names of those of ``MetricOptions`` that it has a use for;
    ``missing`` says what this machine lacks for it, or None, and ``faults`` why it cannot score an item, or None, for
    each of a file's. ``needs`` are options that an entry has to state, since no default would do."""

    name: str
    verb: Verb
    direction: Literal["maximize", "minimize"]
    required: tuple[tuple[str, ...], ...]
    score: Callable[[LanguageModel, Sequence[Item], MetricOptions], Scored]
    options: tuple[str, ...] = WRITTEN
    missing: Callable[[], str | None] = lambda: None
    faults: Callable[[Sequence[Item]], list[str | None]] = lambda items: [None] * len(items)
    needs: tuple[str, ...] = ()
