"""The trackers that there are, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.tracking.tracker import Opener, StudyFacts, Tracker


def _mlflow(study: StudyFacts, run: str | None) -> Tracker:
    from mergefront.tracking.mlflow_run import MlflowRun

    return MlflowRun(study, run)


def _wandb(study: StudyFacts, run: str | None) -> Tracker:
    from mergefront.tracking.wandb_run import WandbRun

    return WandbRun(study, run)


TRACKERS: Mapping[str, Opener] = {"mlflow": _mlflow, "wandb": _wandb}
"""By name, which is that of the library and of the extra."""


def checked_trackers(names: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers of these names; raises ``UserError`` for one that is unknown or not installed."""
    wanted = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in TRACKERS:
            raise UserError(f"log_to: {name!r} is no tracker {did_you_mean(name, TRACKERS)}")
        if find_spec(name) is None:
            raise UserError(f'log_to: {name} needs the extra: pip install "mergefront[{name}]"')
    return wanted
