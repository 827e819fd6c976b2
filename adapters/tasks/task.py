"""What a task is: items of two splits, and a way to score a model on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.options import ItemOptions
from mergefront.adapters.tasks.questions import Question
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.scores.evaluation import ItemScores
from mergefront.optimizer.seeding import derive_seed

SPLITS = ("search", "report")


@runtime_checkable
class Task(Protocol):
    """A task scores a model on items.

    ``direction`` says whether the mean score is better large or small, ``verb`` what a model must be able to do.
    ``items`` returns the items of the split "search" (what a search optimises on) or "report" (what its result
    is measured on); the two never share an item. Raises ``UserError`` for another split or one without items.
    ``questions`` are what each item puts to a model. ``max_unanswered`` is the share of the items asked that may have
    no usable answer; above it a candidate fails.
    """

    @property
    def name(self) -> str: ...

    @property
    def direction(self) -> Literal["maximize", "minimize"]: ...

    @property
    def verb(self) -> Verb: ...

    @property
    def max_unanswered(self) -> float: ...

    def items(self, split: str) -> Sequence[Item]: ...

    def questions(self, items: Sequence[Item]) -> list[Question]: ...

    def score(self, model: LanguageModel, items: Sequence[Item]) -> ItemScores: ...


Splits = Mapping[str, tuple[Item, ...]]


def items_of(task: str, splits: Splits, split: str, remedy: str) -> tuple[Item, ...]:
    """The items of one split of a task; raises ``UserError`` for an unknown split and for one without items."""
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} {did_you_mean(split, SPLITS)}")
    if not splits[split]:
        raise UserError(f"task {task!r} has no {split} items; give it {remedy}")
    return splits[split]


def limited(splits: Mapping[str, Sequence[Item]], options: ItemOptions) -> tuple[Splits, list[str]]:
    """The first ``search_items`` and ``report_items``, as far as the options say, and where there are fewer."""
    wanted = {"search": options.search_items, "report": options.report_items}
    problems = [
        f"{split}_items is {most}; there are {len(splits[split])} {split} items"
        for split, most in wanted.items()
        if most is not None and most > len(splits[split])
    ]
    return {split: tuple(items[: wanted[split]]) for split, items in splits.items()}, problems


def seeded_order(items: Sequence[Item], seed: int) -> list[Item]:
    """Items in an order that depends on the seed and their content alone, not on their place in a file."""
    return sorted(items, key=lambda item: (derive_seed(seed, "items", item.id), item.id))


def split_items(items: Sequence[Item], report_fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Search and report items: two disjoint parts, by seed, whatever the order of the file.

    Each part has at least one item when there are two or more and the fraction is not 0. Two tasks
    over the same file are split alike, so that no task's report items are another one's search items.
    """
    ordered = seeded_order(items, seed)
    report = round(report_fraction * len(items))
    if report_fraction > 0 and len(items) > 1:
        report = min(max(report, 1), len(items) - 1)
    return ordered[report:], ordered[:report]
