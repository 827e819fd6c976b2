"""A study as one run of MLflow: scores by trial as metrics, trials and front as JSON files.

Where it goes is MLflow's to say: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME (default: mergefront) and its credentials.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mergefront.tracking.tracker import FrontFacts, StudyFacts, TrialFacts, environment

_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_LONGEST_VALUE = 500
"""Characters of a parameter that every version of MLflow takes."""


class MlflowRun:
    """See ``Tracker``."""

    def __init__(self, study: StudyFacts, run: str | None) -> None:
        from mlflow import MlflowClient

        self._client = client = MlflowClient()
        if run is None:
            name = environment("MLFLOW_EXPERIMENT_NAME", "mergefront")
            experiment = client.get_experiment_by_name(name)
            identity = client.create_experiment(name) if experiment is None else experiment.experiment_id
            run = str(client.create_run(identity, run_name=study.name).info.run_id)
            for key, value in study.facts.items():
                client.log_param(run, key, value[:_LONGEST_VALUE])
        else:
            client.update_run(run, status="RUNNING")
        self.run = run

    def trial_finished(self, trial: TrialFacts) -> None:
        from mlflow.entities import Metric

        moment = int(1000 * trial.finished)
        values = [Metric(name, value, moment, trial.number) for name, value in metrics(trial).items()]
        self._client.log_batch(self.run, metrics=values)
        self._client.log_dict(self.run, asdict(trial), f"trials/{trial.number}.json")

    def front_changed(self, front: FrontFacts) -> None:
        self._client.log_dict(self.run, {"after trial": front.number, "front": list(front.members)}, "front.json")
        self._client.log_metric(self.run, "on the front", len(front.members), step=front.number)

    def close(self, is_done: bool) -> None:
        self._client.set_terminated(self.run, "FINISHED" if is_done else "KILLED")


def metrics(trial: TrialFacts) -> Mapping[str, float]:
    """The numbers of a trial, by names that MLflow takes; no two share one."""
    every: dict[str, Any] = {**trial.scores, "hypervolume": trial.hypervolume, "seconds": trial.seconds}
    every |= {f"standard error {name}": error for name, error in trial.standard_errors.items()}
    every |= {f"coefficient {name}": value for name, value in trial.params.items()}
    every["failed"] = float(trial.failure is not None)
    found: dict[str, float] = {}
    for name, value in every.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            allowed = _NOT_IN_NAMES.sub("_", name).strip("_ ") or "_"
            while allowed in found:
                allowed += "_"
            found[allowed] = float(value)
    return found
