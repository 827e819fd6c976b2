"""What a metric is: how items are put to a model, and a row of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from mergefront.adapters.language_model import LanguageModel, Thinking, Verb
from mergefront.adapters.tasks.conversations import Chats
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.judging.options import JudgeOptions
from mergefront.adapters.tasks.options import Count, Texts, Thoughts
from mergefront.optimizer.sections import Options

Scored = tuple[list[float], list[float] | None]
"""Scores and margins (None: the metric has none), one number per item."""

PROMPT = (("prompt",),)
ANSWER = (("prompt", "answer"),)
TEXT = (*ANSWER, ("text",))

DRAWN = ("temperature", "top_p", "samples", "samples_metric")
THOUGHT = ("thinking", "max_thinking_tokens")
WRITTEN = ("max_new_tokens", "stop", "skip_blank_start", *DRAWN, *THOUGHT)
"""Options of metrics of what a model writes."""
SCORED = ("delimiter",)
"""Options of metrics of how likely texts are."""


class MetricOptions(Options):
    """How items are put to the model, and how answers are compared."""

    max_new_tokens: Count = Field(32, description="the longest answer, in tokens; 256 with `chat`")
    stop: Texts = Field(("\n",), description="a text, or several, at which an answer ends; none with `chat`")
    skip_blank_start: bool = Field(
        True, description="a stop string of white space alone ends no answer before its first other character"
    )
    temperature: float = Field(0.0, ge=0, description="0: the likeliest token at each step; above: tokens are drawn")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens of so much probability together")
    samples: Count = Field(1, description="answers drawn for each item, at a `temperature` above 0")
    samples_metric: Literal["mean", "pass@k"] = Field(
        "mean", description="an item's score is the mean of its answers', or their best one's"
    )
    thinking: Thoughts = Field(
        None, description="the model thinks before it answers: true, or the marks `{start: <think>, end: </think>}`"
    )
    max_thinking_tokens: Count = Field(1024, description="the longest thoughts, in tokens, before the answer's own")
    delimiter: str | None = Field(
        None,
        title="a text (it may be empty), or null: as the data says",
        description="text between a prompt and a scored answer; null: nothing where either has white space "
        "there, otherwise one space",
    )
    length_normalised: bool = Field(
        False, description="log-likelihoods of choices are divided by their characters, as in lm-eval's acc_norm"
    )
    margins: bool = Field(
        True,
        description="by how much an answer was right or wrong is kept with it, for mm-mo and racing, where a model "
        "tells",
    )
    normalise: bool = Field(
        False, description="case, punctuation, forms of compatibility and English articles do not count"
    )
    tolerance: float = Field(0.0, ge=0, description="how far a number may be off, relative to the right one")
    seconds: float = Field(5.0, gt=0, description="processor time of a program")
    memory_mb: Count = Field(512, description="memory of a program")
    chat: Chats = Field(
        None, description="each item is put to models as a conversation, by their chat template (see Conversations)"
    )
    judge: JudgeOptions | None = Field(
        None, description="`{by, rubric}` with a `range` of scores or an anchor `against` which answers are compared"
    )

    @property
    def thoughts(self) -> Thinking | None:
        """What a model thinks before it answers, where it does."""
        marks = self.thinking
        return None if marks is None else Thinking(marks.start, marks.end, self.max_thinking_tokens)


CHAT_DEFAULTS: Mapping[str, Any] = {"max_new_tokens": 256, "stop": ()}
"""Where a task with ``chat`` leaves options out: the model ends its turn itself."""


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
