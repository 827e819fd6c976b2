"""What tasks over whole texts share: their items, and that nothing is asked in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from mergefront.adapters.language_model import Verb
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.questions import Question
from mergefront.adapters.tasks.task import Splits, items_of


class TextTask:
    """``remedy`` is what an entry lacks whose report has no items."""

    name: str
    splits: Splits
    verb: Verb = "embed"
    direction: Literal["maximize", "minimize"] = "maximize"
    max_unanswered = 0.0
    remedy: ClassVar[str] = "a 'report_fraction' above 0"

    def items(self, split: str) -> Sequence[Item]:
        return items_of(self.name, self.splits, split, self.remedy)

    def questions(self, items: Sequence[Item]) -> list[Question]:
        """None: nothing is written and no answer follows a prompt."""
        return []
