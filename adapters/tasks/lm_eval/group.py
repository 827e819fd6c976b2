"""What the tasks of a group are scored by together, and whether each item counts the same or each task."""

from __future__ import annotations

from dataclasses import dataclass

from mergefront.adapters.tasks.lm_eval.loading import Loaded
from mergefront.adapters.tasks.lm_eval.member import chosen_measure, measures
from mergefront.optimizer.errors import UserError


@dataclass(frozen=True)
class GroupMeasure:
    """A metric and a filter (None: the task's first); ``by_size``: the score is the mean over items, otherwise the mean
    of the tasks' means."""

    metric: str
    filter: str | None
    by_size: bool = True

    @property
    def text(self) -> str:
        return self.metric if self.filter is None else f"{self.metric},{self.filter}"


def group_measure(
    name: str, found: Loaded, metric: str | None, filter_: str | None, by_size: bool | None
) -> GroupMeasure:
    """How the harness averages the tasks of a group; by default its first aggregate. Raises ``UserError``."""
    aggregates = found.aggregates or ()
    if metric is None and aggregates:
        metric = aggregates[0].metric
    if metric is None:
        metric = next(iter(measures(next(iter(found.tasks.values())))), None)
    entry = next((one for one in aggregates if one.metric == metric), None)
    if by_size is None and entry is None:
        known = f"only of {', '.join(one.metric for one in aggregates)}" if aggregates else "none"
        raise UserError(
            f"{name!r} has no average of {metric or 'its tasks'} in the harness ({known}); say weight_by_size: true "
            f"(each item counts the same) or false (each of its {len(found.tasks)} tasks does)"
        )
    if filter_ is None and entry is not None and entry.filter_list:
        filter_ = entry.filter_list[0]
    refused: dict[str, str] = {}
    for label, harness in found.tasks.items():
        try:
            chosen_measure(harness, label, metric, filter_)
        except UserError as error:
            refused[label] = str(error)
    if refused:
        raise UserError(
            f"{name!r}: {len(refused)} of its {len(found.tasks)} tasks cannot be averaged with the others: "
            f"{next(iter(refused.values()))}"
        )
    weighted = bool(entry.weight_by_size) if by_size is None and entry is not None else bool(by_size)
    measure = GroupMeasure(str(metric), filter_, weighted)
    kinds = {harness.OUTPUT_TYPE == "generate_until" for harness in found.tasks.values()}
    signs = {bool(harness.higher_is_better().get(metric, True)) for harness in found.tasks.values()}
    if len(kinds) > 1 or len(signs) > 1:
        why = (
            "some generate and some score choices"
            if len(kinds) > 1
            else f"{metric} is better high in some, low in some"
        )
        raise UserError(f"{name!r}: its tasks cannot be averaged ({why}); name its tasks one by one")
    return measure
