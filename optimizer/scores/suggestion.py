"""What speaks against a member of a front: the anchors that beat it, what it loses to the base, what it gives up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergefront.optimizer.scores.differences import beats, leads
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.scores.objectives import DELTA_L1, Objective


@dataclass(frozen=True)
class Objections:
    """Why a member of a front is not suggested: objectives in which it loses to the base, and anchors that beat it."""

    lost: tuple[str, ...] = ()
    beaten_by: tuple[str, ...] = ()

    def __or__(self, other: Objections) -> Objections:
        """Both, each objective and each anchor once."""
        lost, beaten_by = {*self.lost, *other.lost}, {*self.beaten_by, *other.beaten_by}
        return Objections(tuple(sorted(lost)), tuple(sorted(beaten_by)))

    def __bool__(self) -> bool:
        return bool(self.lost or self.beaten_by)


def objections(
    objectives: Sequence[Objective], member: Evaluation, anchors: Mapping[str, Evaluation], base: Evaluation | None
) -> Objections:
    """What speaks against ``member``, one pair at a time beyond noise. ``anchors`` are those that could be taken.

    The distance from the base is no loss to it: only the base itself has none.
    """
    beaten_by = [name for name, anchor in anchors.items() if beats(*leads(objectives, anchor, member))]
    lost = [] if base is None else [name for name in leads(objectives, base, member)[0] if name != DELTA_L1]
    return Objections(tuple(lost), tuple(beaten_by))


def left_at_worst(objectives: Sequence[Objective], member: Evaluation, anchors: Sequence[Evaluation]) -> list[str]:
    """The objectives in which ``member`` is not better than the worst anchor beyond noise, though another anchor is."""
    left = []
    for objective in objectives if anchors else ():
        ranked = sorted(anchors, key=lambda anchor: objective.sign * float(anchor.scores[objective.name]))
        if leads([objective], ranked[-1], ranked[0])[0] and not leads([objective], member, ranked[0])[0]:
            left.append(objective.name)
    return left
