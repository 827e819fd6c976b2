"""Search and report items of the harness' tasks, and what the items of several tasks count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.lm_eval.member import Member, documents
from mergefront.adapters.tasks.options import DEFAULT_REPORT_FRACTION
from mergefront.adapters.tasks.task import Splits, seeded_order, split_items


@dataclass(frozen=True)
class MemberSplits:
    """How the items of several tasks are split: those of each task by themselves, by the same seed."""

    report_fraction: float | None
    limit: float | None
    seed: int

    def sets(self, member: Member) -> dict[str, dict[str, Any]]:
        """The documents of a task's validation and test set."""
        return {split: documents(member.harness, split, self.limit) for split in ("validation", "test")}

    def split(
        self, members: Sequence[Member], sets: Sequence[Mapping[str, Mapping[str, Any]]]
    ) -> tuple[list[Item], list[Item], dict[str, Member], bool]:
        """Search and report items, whose each is, and whether the search optimises on test items.

        An item that several tasks ask in their own words stands once for each; it is never a search item of one and a
        report item of another.
        """
        owners: dict[str, Member] = {}
        search: list[list[tuple[str, str]]] = []
        report: list[list[tuple[str, str]]] = []
        on_test = False
        for member, found in zip(members, sets, strict=True):
            names: dict[str, str] = {}
            for known in {**found["validation"], **found["test"]}:
                names[known] = known if known not in owners else f"{known}:{member.name}"
                owners[names[known]] = member
                member.documents[names[known]] = found["test"].get(known, found["validation"].get(known))
            ours, theirs, of_test = self._split_one(found)
            on_test = on_test or of_test
            search.append([(names[item.id], item.id) for item in ours])
            report.append([(names[item.id], item.id) for item in theirs])
        shown = {document for several in report for _, document in several}
        kept = [[name for name, document in several if document not in shown] for several in search]
        return _mixed(kept), _mixed([[name for name, _ in several] for several in report]), owners, on_test

    def _split_one(self, found: Mapping[str, Mapping[str, Any]]) -> tuple[Sequence[Item], Sequence[Item], bool]:
        of = {split: [Item(one, "", ()) for one in known] for split, known in found.items()}
        if of["validation"] and of["test"] and self.report_fraction is None:
            report = seeded_order(of["test"], self.seed)
            search = [item for item in of["validation"] if item.id not in found["test"]]
            return seeded_order(search, self.seed), report, False
        only = of["test"] or of["validation"]
        fraction = DEFAULT_REPORT_FRACTION if self.report_fraction is None else self.report_fraction
        return *split_items(only, fraction, self.seed), bool(of["test"])


def _mixed(lists: Sequence[Sequence[str]]) -> list[Item]:
    """Items of several tasks in an order in which every beginning has them in proportion."""
    places = [
        ((rank + 0.5) / len(names), number, name)
        for number, names in enumerate(lists)
        for rank, name in enumerate(names)
    ]
    return [Item(name, "", ()) for _, _, name in sorted(places)]


def equal_tasks(splits: Splits, owners: Mapping[str, Member]) -> dict[str, float]:
    """What the scores of items are multiplied by, so that their mean in each split is the mean of the tasks' means."""
    weights: dict[str, float] = {}
    for items in splits.values():
        counts: dict[str, int] = {}
        for item in items:
            counts[owners[item.id].name] = counts.get(owners[item.id].name, 0) + 1
        for item in items:
            weights[item.id] = len(items) / (len(counts) * counts[owners[item.id].name])
    return weights
