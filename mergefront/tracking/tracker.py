"""What an experiment tracker is told: finished trials, and the front whenever it changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class StudyFacts:
    """A study as its run is described; ``facts`` are method, models, objectives, sampler, seed and the like."""

    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class TrialFacts:
    """A finished trial: its scores (none if it failed), coefficients, and the hypervolume of all up to it.

    ``finished`` is in seconds since 1970.
    """

    number: int
    finished: float
    seconds: float | None
    anchor: str | None
    scores: Mapping[str, float]
    standard_errors: Mapping[str, float]
    params: Mapping[str, Any]
    hypervolume: float | None
    failure: str | None


@dataclass(frozen=True)
class FrontFacts:
    """The front after trial ``number``: of each member its trial, anchor, scores and coefficients."""

    number: int
    members: tuple[Mapping[str, Any], ...]


class Tracker(Protocol):
    """A run of a tracker that is open. Every method may raise whatever the tracker's library raises."""

    run: str
    """What the run is called there, by which a later process opens it again."""

    def trial_finished(self, trial: TrialFacts) -> None: ...

    def front_changed(self, front: FrontFacts) -> None: ...

    def close(self, is_done: bool) -> None:
        """The process leaves off; ``is_done``: the search is at its end."""
        ...


Opener = Callable[[StudyFacts, "str | None"], Tracker]
"""Opens the run of this name, or a new one (None). May raise whatever the tracker's library raises."""


def environment(variable: str, default: str) -> str:
    """What the tracker's own variable says, or the default."""
    return os.environ.get(variable) or default
