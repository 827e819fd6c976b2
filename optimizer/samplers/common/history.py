"""What a sampler may know when it proposes a trial, as a function of the study's trials alone.

Trials are counted by position: their rank among the trials that are not anchors of the search loop. Positions
below ``initial`` belong to the initial design, the rest to rounds of ``batch``. A round's model is fitted on
what was observed before the round began, and its earlier members count as pending whatever has become of them: a
proposal does not depend on the order in which the members of its round finish.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.arrays import Array, Mask
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.search.attributes import is_anchor, is_outside_space, proposed_params


@dataclass(frozen=True)
class History:
    """The study as one trial sees it."""

    position: int
    """Rank among the trials that are not anchors, from 0."""
    slot: int
    """Index within the round; 0 in the initial design."""
    round_start: int
    """Number of the first trial of the round: what all its members share, for seeding."""
    observed: tuple[FrozenTrial, ...]
    """Finished with finite values before the round began, in order of number."""
    failed: tuple[FrozenTrial, ...]
    """Finished otherwise before the round began: failed, pruned, or with a value that is not finite."""
    anchors: tuple[FrozenTrial, ...]
    """Observed trials by which objectives are normalised: the flagged anchors, or else the initial design."""
    pending: tuple[FrozenTrial, ...]
    """On their way, or members of the same round."""
    earlier: tuple[FrozenTrial, ...]
    """All trials with a smaller number: what should not be proposed again."""
    front_beyond: tuple[FrozenTrial, ...] = ()
    """On the front of a long study, but left out of ``observed`` (``representatives``)."""


def read_history(earlier: Sequence[FrozenTrial], number: int, initial: int, batch: int) -> History:
    """The history of trial ``number``, from the trials before it (``earlier_trials``)."""
    ranked = [trial for trial in earlier if not (is_anchor(trial) or is_outside_space(trial))]
    position = len(ranked)
    slot = (position - initial) % batch if position >= initial else 0
    mates = ranked[position - slot :] if slot else []
    round_start = mates[0].number if mates else number
    mate_numbers = {trial.number for trial in mates}
    finished = [trial for trial in earlier if trial.number < round_start and trial.state.is_finished()]
    observed = tuple(trial for trial in finished if is_observed(trial))
    failed = tuple(trial for trial in finished if not is_observed(trial))
    design = {trial.number for trial in ranked[:initial]}
    anchors = tuple(trial for trial in observed if is_anchor(trial))
    if not anchors:
        anchors = tuple(trial for trial in observed if trial.number in design) or observed
    pending = tuple(
        trial
        for trial in earlier
        if trial.number in mate_numbers or trial.state in (TrialState.RUNNING, TrialState.WAITING)
    )
    return History(position, slot, round_start, observed, failed, anchors, pending, tuple(earlier))


def earlier_trials(study: Study, number: int) -> list[FrozenTrial]:
    """All trials with a smaller number, in order, whatever has become of them."""
    trials = study.get_trials(deepcopy=False)
    return sorted((trial for trial in trials if trial.number < number), key=lambda trial: trial.number)


def later_trials(study: Study, number: int) -> list[FrozenTrial]:
    """The trials with a larger number: where several are proposed at once, what one of them has is not another's."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.number > number]


def is_inside(trial: FrozenTrial, encoder: Encoder) -> bool:
    """Whether the trial is a point of the space, as far as is known."""
    return not is_outside_space(trial) and encoder.contains(proposed_params(trial))


def points_of(trials: Sequence[FrozenTrial], encoder: Encoder) -> Array:
    """Those of the trials that are points of the space, encoded: ``n x d``."""
    points = [encoder.encode(proposed_params(trial)) for trial in trials if is_inside(trial, encoder)]
    return np.array(points).reshape(-1, encoder.dimension)


def likely_to_fail(points: Array, observed: Array, failed: Array) -> Mask:
    """Which of ``points`` (``n x d``) lie nearer to one that could not be evaluated than to any that could."""
    if not len(failed) or not len(observed):
        return np.zeros(len(points), dtype=bool)
    nearest = [np.linalg.norm(points[:, None, :] - known[None], axis=2).min(axis=1) for known in (observed, failed)]
    return np.asarray(nearest[1] < nearest[0])


def is_observed(trial: FrozenTrial) -> bool:
    """Whether the trial finished with finite values (Optuna accepts infinite ones)."""
    return trial.state == TrialState.COMPLETE and all(math.isfinite(value) for value in trial.values)
