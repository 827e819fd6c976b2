"""The checkpoints of a training run of transformers' Trainer as experts, each with a metric of its own.

A run is a folder with ``checkpoint-N`` folders (whole models or LoRAs of peft), each with the ``trainer_state.json``
that the Trainer writes into it last; its ``log_history`` has what was measured at which step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mergefront.adapters.checkpoints.header import read_header, read_json
from mergefront.optimizer.errors import UserError, did_you_mean

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
_STATE = "trainer_state.json"
EVAL_LOSS, LOSS = "eval_loss", "loss"


@dataclass(frozen=True)
class TrainedCheckpoint:
    """A checkpoint of a run; ``quality`` is its metric so that more is better and above 0 (of a loss its inverse)."""

    name: str
    step: int
    value: float
    quality: float


def checkpoint_folders(run: Path) -> dict[str, Path]:
    """The complete checkpoints of a run by name, in the order of their steps.

    Raises ``UserError``, naming a folder that is only half written.
    """
    if not run.is_dir():
        raise UserError(f"{run}: there is no such folder")
    steps = {path: int(found[1]) for path in run.iterdir() if (found := _CHECKPOINT.fullmatch(path.name))}
    if not steps:
        raise UserError(f"{run} has no folder checkpoint-N; name the output_dir of a Trainer that saved checkpoints")
    for path in steps:
        try:
            read_header(path)
            if not (path / _STATE).is_file():
                raise UserError(f"{path} has no {_STATE}, which a Trainer writes last")
        except UserError as error:
            raise UserError(
                f"{path.name} cannot be read: {error}; if it is half written, wait for it or delete it"
            ) from None
    return {path.name: path for path in sorted(steps, key=steps.__getitem__)}


def trained_checkpoints(
    run: Path, metric: str | None = None, greater_is_better: bool | None = None
) -> tuple[str, list[TrainedCheckpoint]]:
    """The metric's name and every checkpoint with its value.

    ``metric`` is a key of the log, with or without ``eval_`` (default: the loss on the evaluation set, or where nothing
    was evaluated the training's, as it was logged last). Less is better of a name that ends in "loss", as the Trainer
    has it, unless ``greater_is_better`` says otherwise; then the quality is 1 / value. Raises ``UserError``, naming the
    checkpoint, for one without the metric, and for a value of 0 or less.
    """
    folders = checkpoint_folders(run)
    logged = _logged(run, folders)
    known = sorted({key for entry in logged.values() for key in entry if key not in ("epoch", "step")})
    name = metric or (EVAL_LOSS if EVAL_LOSS in known else LOSS)
    name = f"eval_{name}" if name not in known and f"eval_{name}" in known else name
    if name not in known:
        if metric is None:
            there = ", ".join(known) or "nothing"
            raise UserError(f"{run}: neither {EVAL_LOSS} nor {LOSS} was logged; name the metric (logged: {there})")
        raise UserError(f"{run}: no metric {metric!r} was logged {did_you_mean(metric, known)}")
    more_is_better = not name.endswith("loss") if greater_is_better is None else greater_is_better
    made = []
    for folder in folders:
        step = int(folder.rpartition("-")[2])
        value = _at(logged, name, step)
        if value is None:
            raise UserError(
                f"{folder} has no {name}: none was logged at step {step}; delete the checkpoint, name another metric, "
                "or save and evaluate at the same steps"
            )
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{folder}: {name} is {value:g}; weights are powers of it, so it must be above 0")
        made.append(TrainedCheckpoint(folder, step, value, value if more_is_better else 1 / value))
    return name, made


def _at(logged: Mapping[int, Mapping[str, float]], name: str, step: int) -> float | None:
    """What was logged of a metric at a step; of the training's loss, at the last one before it that has any."""
    if name != LOSS:
        return logged.get(step, {}).get(name)
    before = [at for at, entry in logged.items() if at <= step and LOSS in entry]
    return logged[max(before)][LOSS] if before else None


def _logged(run: Path, folders: Mapping[str, Path]) -> dict[int, dict[str, float]]:
    """The numbers of every state of the run, by their step."""
    made: dict[int, dict[str, float]] = {}
    for path in (*(folder / _STATE for folder in folders.values()), run / _STATE):
        for entry in _history(path) if path.is_file() else ():
            numbers = {
                key: float(value)
                for key, value in entry.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            if "step" in numbers:
                made.setdefault(int(numbers["step"]), {}).update(numbers)
    return made


def _history(path: Path) -> Iterator[Mapping[str, object]]:
    history = read_json(path).get("log_history")
    if not isinstance(history, list):
        raise UserError(f"{path} has no log_history; it is no state of a Trainer")
    return (entry for entry in history if isinstance(entry, dict))
