"""The search space where nobody declared one: what a plain Optuna study's finished trials say of it."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

_SAME = 1e-9


def observed_space(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The parameters that all ``trials`` have, by name, each with the last of its ranges; in order of number.

    A parameter whose range once became another one that does not contain it is left out.
    """
    if not trials:
        return {}
    names = set.intersection(*(set(trial.distributions) for trial in trials))
    space = {}
    for name in sorted(names):
        widest = trials[0].distributions[name]
        for trial in trials[1:]:
            following = trial.distributions[name]
            if following != widest and not _contains(following, widest):
                break
            widest = following
        else:
            space[name] = widest
    return space


def why_by_chance(trials: Sequence[FrozenTrial], name: str, now: BaseDistribution) -> str | None:
    """Why a parameter with the range ``now`` is no part of what ``trials`` teach; None where none of them has it."""
    ranges = [trial.distributions[name] for trial in trials if name in trial.distributions]
    if not ranges:
        return None
    if len(ranges) < len(trials):
        return "not every finished trial has it"
    other = next((one for one in reversed(ranges) if one != now), None)
    return None if other is None else f"its range has changed from {other} to {now}, which does not contain it"


def _contains(wide: BaseDistribution, narrow: BaseDistribution) -> bool:
    """Whether every value of ``narrow`` is one of ``wide``, on the same scale."""
    for kind in (FloatDistribution, IntDistribution):
        if isinstance(wide, kind) and isinstance(narrow, kind):
            inside = wide.log == narrow.log and wide.low <= narrow.low and wide.high >= narrow.high
            if not inside or wide.step is None:
                return inside
            steps = (narrow.low - wide.low) / wide.step
            return wide.step == narrow.step and abs(steps - round(steps)) < _SAME
    return False
