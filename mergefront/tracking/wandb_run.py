"""A study as one run of Weights & Biases: a row of its history for each trial, the front as a table.

Where it goes is wandb's to say: WANDB_API_KEY or ``wandb login``, WANDB_PROJECT (default: mergefront), WANDB_MODE.
"""

from __future__ import annotations

import uuid
from typing import Any

from mergefront.tracking.tracker import FrontFacts, StudyFacts, TrialFacts, environment


class WandbRun:
    """See ``Tracker``."""

    def __init__(self, study: StudyFacts, run: str | None) -> None:
        import wandb

        mode = environment("WANDB_MODE", "online")
        # Its own question for a key would wait for an answer beside the progress bar.
        if mode == "online" and not wandb.login(prompt=False):
            raise PermissionError("there is no key; run 'wandb login', or set WANDB_API_KEY or WANDB_MODE=offline")
        self.run = run or uuid.uuid4().hex[:12]
        self._run: Any = wandb.init(
            id=self.run,
            resume="allow",
            name=study.name,
            project=environment("WANDB_PROJECT", "mergefront"),
            config=dict(study.facts),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("trial")
        self._run.define_metric("*", step_metric="trial")

    def trial_finished(self, trial: TrialFacts) -> None:
        told = {"hypervolume": trial.hypervolume, "seconds": trial.seconds, "failure": trial.failure}
        told |= {f"standard error {name}": error for name, error in trial.standard_errors.items()}
        known = {name: value for name, value in told.items() if value is not None}
        params = {f"coefficient {name}": value for name, value in trial.params.items()}
        self._run.log({"trial": trial.number, "anchor": trial.anchor or "", **trial.scores, **params, **known})

    def front_changed(self, front: FrontFacts) -> None:
        import wandb

        columns = list(dict.fromkeys(name for member in front.members for name in member))
        rows = [[member.get(name) for name in columns] for member in front.members]
        table = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._run.log({"trial": front.number, "front": table, "on the front": len(rows)})

    def close(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)
