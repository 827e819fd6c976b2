"""A study's trials on their way to trackers: each once, in a thread of their own, whatever becomes of the trackers."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from mergefront.optimizer.foreign_text import without_secrets
from mergefront.optimizer.scores.objectives import REFERENCE
from mergefront.optimizer.scores.pareto import HypervolumeSoFar
from mergefront.optimizer.search.attributes import ANCHOR, FAILURE, RECIPE, TRACKED
from mergefront.study.stored_study import Candidate, Study
from mergefront.tracking.tracker import FrontFacts, Opener, StudyFacts, TrialFacts
from mergefront.tracking.trackers import TRACKERS

if TYPE_CHECKING:
    from mergefront.optimizer.search.loop import TrialOutcome

CLOSING_SECONDS = 30.0
"""How long the end of a search waits for a tracker that is slow."""
_log = logging.getLogger(__name__)


@contextmanager
def logged_to(study: Study, names: Sequence[str], openers: Mapping[str, Opener] = TRACKERS) -> Iterator[LogsTrials]:
    """While entered, trials of ``study`` are written to the trackers of these names; yields an ``on_trial_end``.

    Trials of other workers are written too, and those that earlier processes left: once each, since the study keeps
    what was. A tracker that fails is warned about once and told no more, until the study is resumed.
    """
    logs = [_TrackerLog(study, name, openers[name]) for name in names]
    tell = LogsTrials(study, logs)
    try:
        tell()
        yield tell
        tell()
    finally:
        deadline = time.monotonic() + CLOSING_SECONDS
        for log in logs:
            log.close(deadline)


class LogsTrials:
    """Hands what has finished by now to the trackers; see ``logged_to``."""

    def __init__(self, study: Study, logs: Sequence[_TrackerLog]) -> None:
        self._study = study
        self._logs = logs

    def __call__(self, outcome: TrialOutcome | None = None) -> None:
        if not any(log.is_alive for log in self._logs):
            return
        try:
            trials = self._study.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
            candidates = self._study.candidates()
            waiting = [trial for trial in trials if any(log.takes(trial.number) for log in self._logs)]
            told = _all_facts(self._study, waiting, candidates)
            for log in self._logs:
                for facts in told:
                    if log.takes(facts.number):
                        log.put(facts)
                log.put_front(_front_facts(self._study))
                log.keep()
        except Exception as error:  # whatever it is, the search goes on
            _warn("log_to", error)


class _TrackerLog:
    """One tracker in a thread of its own, and what of a study it has been told."""

    def __init__(self, study: Study, name: str, opener: Opener) -> None:
        self._study, self._name, self._opener = study, name, opener
        # A copy of the study is another study, and gets a run of its own.
        self._key = f"{study.record.study_id} {study.record.created_at.isoformat()}"
        kept = study.optuna.user_attrs.get(TRACKED, {}).get(name, {})
        kept = kept if kept.get("study") == self._key else {}
        self._run: str | None = kept.get("run")
        self._written: set[int] = set(range(kept.get("up_to", 0))) | set(kept.get("beyond", ()))
        self._sent = set(self._written)
        self._front: tuple[int, ...] | None = None
        self._kept = dict(kept)
        self._inbox: queue.SimpleQueue[TrialFacts | FrontFacts | None] = queue.SimpleQueue()
        self._is_done = False
        self.is_alive = True
        self._facts = _study_facts(study)
        self._thread = threading.Thread(target=self._work, name=f"log to {name}", daemon=True)
        self._thread.start()

    def takes(self, number: int) -> bool:
        """Whether a trial was not sent yet."""
        return self.is_alive and number not in self._sent

    def put(self, trial: TrialFacts) -> None:
        self._sent.add(trial.number)
        self._inbox.put(trial)

    def put_front(self, front: FrontFacts) -> None:
        """The front, where it is not the last one."""
        numbers = tuple(int(member["trial"]) for member in front.members)
        if numbers and numbers != self._front:
            self._front = numbers
            self._inbox.put(front)

    def keep(self) -> None:
        """Store with the study what was written by now, so that a resumed search goes on with the same run."""
        if self._run is None:
            return
        written = set(self._written)
        up_to = next(number for number in range(len(written) + 1) if number not in written)
        beyond = sorted(number for number in written if number > up_to)
        kept = {"study": self._key, "run": self._run, "up_to": up_to, "beyond": beyond}
        if kept != self._kept:
            self._kept = kept
            every = self._study.optuna.user_attrs.get(TRACKED, {})
            self._study.optuna.set_user_attr(TRACKED, {**every, self._name: kept})

    def close(self, deadline: float) -> None:
        """End the tracker; not later than ``deadline``, by ``time.monotonic``."""
        self._is_done = self._study.finished_count() >= self._study.record.evaluations or bool(self._study.stopped)
        self._inbox.put(None)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            _log.warning("%s is slow: what it has not taken is written when the study is resumed", self._name)
        try:
            self.keep()
        except Exception as error:  # whatever it is, the search is what counts
            _warn(self._name, error)

    def _work(self) -> None:
        try:
            tracker = self._opener(self._facts, self._run)
            self._run = tracker.run
            while (told := self._inbox.get()) is not None:
                if isinstance(told, FrontFacts):
                    tracker.front_changed(told)
                else:
                    tracker.trial_finished(told)
                    self._written.add(told.number)
            tracker.close(self._is_done)
        except Exception as error:  # whatever a library or a server does, the search goes on
            self.is_alive = False
            _warn(self._name, error)


def _warn(name: str, error: Exception) -> None:
    said = without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
    _log.warning("%s takes no more of this search: %s (it catches up when the study is resumed)", name, said)


def _study_facts(study: Study) -> StudyFacts:
    definition = study.definition
    facts = {
        "method": ", ".join(method.name for method in study.space.methods),
        "models": ", ".join(study.space.models),
        "objectives": ", ".join(f"{one.name} ({one.direction})" for one in study.objectives),
        "constraints": ", ".join(map(str, study.constraints)),
        "sampler": definition.sampler,
        "seed": str(definition.seed),
        "evaluations": str(study.record.evaluations),
    }
    return StudyFacts(study.name, {name: without_secrets(value) for name, value in facts.items() if value})


def _all_facts(study: Study, trials: Sequence[FrozenTrial], candidates: Sequence[Candidate]) -> list[TrialFacts]:
    """The facts of ``trials``, each with the hypervolume of all candidates up to it."""
    by_digest = {one.digest: one for one in reversed(candidates)}
    so_far = HypervolumeSoFar([REFERENCE] * len(study.objectives))
    rows = zip(candidates, study.normalised(list(candidates)), strict=True) if trials else iter(())
    coming = next(rows, None)
    any_merge = False
    made = []
    for trial in sorted(trials, key=lambda one: one.number):
        while coming is not None and coming[0].number <= trial.number:
            if coming[0].feasible:
                so_far.add(coming[1])
            any_merge |= coming[0].anchor is None
            coming = next(rows, None)
        measured = so_far.measured.value if any_merge and not study.has_one_objective else None
        made.append(_trial_facts(trial, by_digest.get(str(trial.user_attrs.get(RECIPE))), measured))
    return made


def _trial_facts(trial: FrozenTrial, found: Candidate | None, hypervolume: float | None) -> TrialFacts:
    is_scored = trial.state == TrialState.COMPLETE and found is not None
    failure = None if is_scored else str(trial.user_attrs.get(FAILURE, "no reason was kept"))
    return TrialFacts(
        number=trial.number,
        finished=trial.datetime_complete.timestamp() if trial.datetime_complete else time.time(),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
        anchor=trial.user_attrs.get(ANCHOR),
        scores=dict(found.scores) if is_scored and found is not None else {},
        standard_errors=dict(found.standard_errors) if is_scored and found is not None else {},
        params=dict(found.params) if is_scored and found is not None else dict(trial.params),
        hypervolume=hypervolume,
        failure=None if failure is None else without_secrets(failure),
    )


def _front_facts(study: Study) -> FrontFacts:
    members: list[dict[str, Any]] = []
    for one in [study.best()] if study.has_one_objective and study.candidates() else study.front():
        scores = {name: float(score) for name, score in one.scores.items()}
        members.append({"trial": one.number, "anchor": one.anchor or "", **scores, **one.params})
    return FrontFacts(max((int(member["trial"]) for member in members), default=0), tuple(members))
