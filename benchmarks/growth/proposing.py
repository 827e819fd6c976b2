"""What a proposal costs, with what telling it costs: samplers, statements, races."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from sqlalchemy import Engine, event

import mergefront as mf
from benchmarks.growth.rows import Row
from benchmarks.growth.studies import NAME, growing_study, made
from mergefront.optimizer.samplers.registry import make_sampler


def asked_of(name: str) -> Callable[[str], Callable[[], object]]:
    """A proposal of a sampler of ours, told."""

    def ready(url: str) -> Callable[[], object]:
        study = mf.load_study(NAME, storage=url)
        space = study.space.distributions()
        given = {} if name == "gp" else {"rule": study.space.merge_rule}
        sampler = make_sampler(name, seed=0, search_space=space, objectives=study.objectives, **given)
        study.optuna.sampler = sampler
        return lambda: _ask_and_tell(study.optuna, space)

    return ready


def plain_gp(url: str) -> Callable[[], object]:
    """A proposal of Optuna's own Gaussian processes, told."""
    space = mf.load_study(NAME, storage=url).space.distributions()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=NAME, storage=url, sampler=optuna.samplers.GPSampler(seed=0))
    return lambda: _ask_and_tell(study, space)


def _ask_and_tell(study: optuna.Study, space: Mapping[str, Any]) -> None:
    trial = study.ask(dict(space))
    # Behind the front: how large that is decides what a proposal costs.
    study.tell(trial, np.random.default_rng(trial.number).uniform(0.0, 0.1, size=len(study.directions)).tolist())


def statements(url: str) -> Callable[[], object]:
    """An ask and a tell of the study's own; tells how many statements each took."""
    study = mf.load_study(NAME, storage=url)
    study.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE mergefront_studies SET evaluations = 1000000")
    )
    study.refresh()

    def work() -> str:
        with _Statements() as asking:
            asked = study.ask()
        assert asked is not None
        with _Statements() as telling:
            study.tell(asked.trial, dict.fromkeys((objective.name for objective in study.objectives), 0.5))
        return f"{asking.count} + {telling.count} statements"

    return work


def plain_statements(url: str) -> Callable[[], object]:
    """The same by Optuna alone: an ask with all parameters, and a tell."""
    space = mf.load_study(NAME, storage=url).space.distributions()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=NAME, storage=url, sampler=optuna.samplers.RandomSampler(seed=0))

    def work() -> str:
        with _Statements() as asking:
            trial = study.ask(space)
        with _Statements() as telling:
            study.tell(trial, [0.5] * len(study.directions))
        return f"{asking.count} + {telling.count} statements"

    return work


class _Statements:
    """How many statements any engine of this process was given while entered, without those that begin transactions."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> _Statements:
        event.listen(Engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "before_cursor_execute", self._note)

    def _note(self, connection: object, cursor: object, statement: str, *_: object) -> None:
        self.count += not statement.startswith(("BEGIN", "PRAGMA"))


def raced(url: str) -> Callable[[], object]:
    """More candidates of a raced study; tells what each took after the first, which reads the study."""
    moments: list[float] = []

    def work() -> str:
        reached = mf.load_study(NAME, storage=url).finished_count()
        growing_study(
            url,
            0,
            items=RACED_ITEMS,
            racing=True,
            evaluations=reached + RACED_CANDIDATES,
            on_trial_end=lambda outcome: moments.append(time.process_time()),
        )
        each = np.diff(moments[-RACED_CANDIDATES:])
        return f"each {each.mean():.3f} s, at most {each.max():.2f} s"

    return work


RACED_ITEMS, RACED_CANDIDATES = 1000, 31
ROWS: Mapping[str, Row] = {
    "ask of mm-mo": Row(made(), asked_of("mm-mo"), 3000, drawn=(30, 100, 300, 1000, 3000)),
    "ask of mm-mo, 64 experts x 2 coefficients": Row(made(models=64), asked_of("mm-mo"), 80, bar="1"),
    "ask of gp, 3 objectives": Row(made(), asked_of("gp"), 300, plain=plain_gp, drawn=(30, 100, 300)),
    "ask and tell, random sampler": Row(made(), statements, 100, plain=plain_statements, bar="a third of 41 + 36"),
    f"{RACED_CANDIDATES} more candidates of a race, 3 tasks x {RACED_ITEMS:,} items": Row(
        made(items=RACED_ITEMS, racing=True), raced, 100, drawn=(30, 100, 300, 1000), bar="0.1 each"
    ),
}
