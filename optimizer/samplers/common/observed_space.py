"""The search space where nobody declared one: what a plain Optuna study's finished trials say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from mergefront.optimizer.recipes.unit_cube import ENUMERATED_LEVELS, Condition

_SAME = 1e-9


def observed_space(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The parameters that all ``trials`` have, by name, each with the last of its ranges; in order of number.

    A parameter whose range once became another one that does not contain it is left out.
    """
    if not trials:
        return {}
    names = set.intersection(*(set(trial.distributions) for trial in trials))
    ranges = {name: _widest(trials, name) for name in sorted(names)}
    return {name: widest for name, widest in ranges.items() if widest is not None}


def conditional_space(
    trials: Sequence[FrozenTrial], common: Mapping[str, BaseDistribution]
) -> tuple[dict[str, BaseDistribution], dict[str, Condition]]:
    """The parameters that only some ``trials`` have, where it is plain when, with their conditions.

    It is plain where one discrete parameter, suggested before, decides it in every trial: each of its values always or
    never comes with the parameter. Values not seen yet of a number do what the nearest one seen does. ``common`` is
    what all trials have; parents may be conditional themselves.
    """
    space: dict[str, BaseDistribution] = {}
    conditions: dict[str, Condition] = {}
    partial = dict.fromkeys(name for trial in trials for name in trial.distributions)
    for name in [name for name in partial if any(name not in trial.distributions for trial in trials)]:
        widest = _widest(trials, name)
        earlier = _suggested_before(trials, name)
        parents = [parent for parent in reversed(earlier) if parent in common or parent in conditions]
        found = (_condition(trials, name, parent, {**common, **space}[parent]) for parent in parents)
        condition = next((one for one in found if one is not None), None)
        if widest is not None and not widest.single() and condition is not None:
            space[name], conditions[name] = widest, condition
    return space, conditions


def _suggested_before(trials: Sequence[FrozenTrial], name: str) -> list[str]:
    """What every trial that has the parameter suggested before it, in order."""
    orders = [list(trial.distributions) for trial in trials if name in trial.distributions]
    before = [set(order[: order.index(name)]) for order in orders]
    return [other for other in orders[0] if all(other in each for each in before)]


def _condition(
    trials: Sequence[FrozenTrial], name: str, parent: str, distribution: BaseDistribution
) -> Condition | None:
    """On which of the parent's values the parameter is there; None where they do not decide it."""
    values = _levels(distribution)
    with_it = {trial.params[parent] for trial in trials if name in trial.distributions}
    without = {trial.params[parent] for trial in trials if parent in trial.params and name not in trial.distributions}
    if values is None or with_it & without:
        return None
    seen = with_it | without
    if isinstance(distribution, CategoricalDistribution):
        return Condition(parent, frozenset(with_it))
    nearest = {value: min(seen, key=lambda known: (abs(known - value), known in with_it)) for value in values}
    return Condition(parent, frozenset(value for value in values if nearest[value] in with_it))


def _levels(distribution: BaseDistribution) -> list[Any] | None:
    """The values of a discrete parameter; None for one with too many to tell apart."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if not isinstance(distribution, IntDistribution):
        return None
    values = range(distribution.low, distribution.high + 1, distribution.step)
    return list(values) if len(values) <= ENUMERATED_LEVELS else None


def _widest(trials: Sequence[FrozenTrial], name: str) -> BaseDistribution | None:
    """The last range of a parameter; None where it does not contain an earlier one."""
    ranges = [trial.distributions[name] for trial in trials if name in trial.distributions]
    for before, after in pairwise(ranges):
        if before != after and not _contains(after, before):
            return None
    return ranges[-1]


def why_by_chance(trials: Sequence[FrozenTrial], name: str, now: BaseDistribution) -> str | None:
    """Why a parameter with the range ``now`` is no part of what ``trials`` teach; None where none of them has it."""
    ranges = [trial.distributions[name] for trial in trials if name in trial.distributions]
    if not ranges:
        return None
    if len(ranges) < len(trials):
        return "not every finished trial has it, and this sampler does not see on what that depends"
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
