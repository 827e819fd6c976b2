"""When a search ends before its budget is spent: after some time, when little is to be expected of going on, or when
nothing can be evaluated any more.

A rule holds for one run of one process: time counts from its start, and so do proposals. A study that has stopped goes
on when it is run again, for at least as many proposals as the rule waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from mergefront.optimizer.arrays import Array
from mergefront.optimizer.sections import Options, checked


class StopRule(Options):
    """Ends a run after ``hours`` of wall time, or when ``asks`` proposals in a row promise less than ``improvement``.

    ``improvement`` is of the hypervolume in the unit in which it is reported, by the sampler's own expectation; None
    means never.
    """

    hours: float | None = Field(default=None, ge=0, description="of wall time, after which a run ends")
    improvement: float | None = Field(
        default=None, ge=0, description="a run ends when proposals promise less than so much more hypervolume"
    )
    asks: int = Field(default=5, ge=1, description="so many proposals in a row")

    @classmethod
    def read(cls, given: Mapping[str, Any] | StopRule | None) -> StopRule:
        """From a mapping; raises ``UserError``."""
        return given if isinstance(given, StopRule) else checked(cls, given or {}, "stop")


CONSECUTIVE_FAILURES = 5
"""Fewer failures in a row never stop a search."""
CHANCE = 1e-5
"""A row of failures that is less likely than this where its points lie has another cause than its points."""


def has_common_cause(failed: Sequence[Array | None], succeeded: Sequence[Array]) -> bool:
    """Whether a row of failures has a cause worth stopping for, and not only one region of the space.

    At each point the chance of a failure is the share of the failures before it among all that was evaluated, each
    weighed by its distance to the power -(d + 1). In a corner where merges break down failures are soon expected; where
    everything fails of late, they come where others worked. Points (``d``) are of the unit cube; None, for what is no
    point of the space, was not expected to fail, and nothing was while nothing could be evaluated.
    """
    if len(failed) < CONSECUTIVE_FAILURES or not succeeded:
        return len(failed) >= CONSECUTIVE_FAILURES
    chance = 1.0
    before: list[Array] = []
    for point in failed:
        if point is None:
            chance /= len(succeeded)
            continue
        worked, broke = _closeness(point, succeeded), _closeness(point, before)
        chance *= max(broke / (worked + broke), 1.0 / (len(succeeded) + 1))
        before.append(point)
    return chance < CHANCE


def _closeness(point: Array, others: Sequence[Array]) -> float:
    distances = np.array([np.linalg.norm(point - other) for other in others])
    return float((np.maximum(distances, 1e-3) ** -(len(point) + 1.0)).sum())


NEVER = StopRule()
"""Only the budget ends a run."""


@dataclass(frozen=True)
class Stop:
    """Why a run ended. ``cause``: "budget", "time", "improvement" or "asked"."""

    cause: str
    reason: str


class StopWatch:
    """Follows one run. ``clock`` gives seconds."""

    def __init__(self, rule: StopRule, clock: Callable[[], float] = time.monotonic) -> None:
        self._rule = rule
        self._clock = clock
        self._began = clock()
        self._low: list[float] = []

    def proposed(self, expected_improvement: float | None) -> None:
        """A trial was proposed; None where its sampler expects nothing in particular (an anchor, a Sobol point)."""
        limit = self._rule.improvement
        if limit is None or expected_improvement is None or expected_improvement >= limit:
            self._low.clear()
        else:
            self._low.append(expected_improvement)

    def stop(self) -> Stop | None:
        """Why the run has to end now, or None."""
        hours, limit = self._rule.hours, self._rule.improvement
        if hours is not None and self._clock() - self._began >= 3600.0 * hours:
            return Stop("time", f"the run has taken {hours:g} hours")
        if limit is not None and len(self._low) >= self._rule.asks:
            return Stop(
                "improvement",
                f"{len(self._low)} proposals in a row were expected to improve the result by less than {limit:g} "
                f"normalised (the last one {self._low[-1]:.2g})",
            )
        return None
