"""Ask for a recipe and tell its scores later: a study driven from any outside harness.

An asked trial is leased: when it is not told in time, the next ask hands the same trial out again.
Telling is idempotent, so that a harness may repeat itself after a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.running.worker import plan_of
from mergefront.storage import DEFAULT_STORAGE
from mergefront.study.stored_study import load_study

if TYPE_CHECKING:
    from mergefront.optimizer.search.loop import Proposal
    from mergefront.study.stored_study import Study

DEFAULT_LEASE = 24 * 3600.0


@dataclass(frozen=True)
class Asked:
    """A trial to evaluate; ``anchor`` is its name if it is one."""

    trial: int
    recipe: Recipe
    anchor: str | None


def ask(name: str, *, storage: str = DEFAULT_STORAGE, lease: float = DEFAULT_LEASE) -> Asked | None:
    """The next trial of a study, or None when its budget is spent or handed out.

    Recipes that were evaluated before are told by themselves. ``lease`` is in seconds.
    """
    return ask_study(load_study(name, storage=storage), lease)


def ask_study(study: Study, lease: float = DEFAULT_LEASE) -> Asked | None:
    """See ``ask``."""
    from mergefront.optimizer.search.loop import complete, propose
    from mergefront.storage.ledger import StudyLedger
    from mergefront.versions import versions

    if not lease > 0:
        raise UserError(f"lease is {lease:g}; it must be a number of seconds above 0")
    plan = plan_of(study)
    ledger = StudyLedger(study.database, study.record.study_id, versions(), lease)
    while (claim := ledger.claim(plan.budget)) is not None:
        handed_out = False
        try:
            proposal = propose(plan, study.optuna, ledger, claim)
            known = ledger.find(proposal.recipe)
            if known is None:
                handed_out = True
                return Asked(proposal.number, proposal.recipe, proposal.anchor)
            complete(plan, study.optuna, ledger, proposal, known, reused=True)
            handed_out = True
        finally:
            if not handed_out:  # nobody got it, so it is not theirs for the time of the lease
                ledger.release(claim)
    return None


def tell(
    name: str,
    trial: int,
    scores: Mapping[str, float],
    *,
    standard_errors: Mapping[str, float] | None = None,
    storage: str = DEFAULT_STORAGE,
) -> None:
    """The scores of an asked trial, one per objective and per further number that a constraint bounds.

    Telling the same scores again changes nothing; raises ``UserError`` for other scores than those
    told before, an unknown trial or objective, and a score that is missing or not finite.
    """
    tell_study(load_study(name, storage=storage), trial, scores, standard_errors)


def tell_study(
    study: Study, trial: int, scores: Mapping[str, float], standard_errors: Mapping[str, float] | None = None
) -> None:
    """See ``tell``."""
    from mergefront.optimizer.search.loop import complete

    evaluation = Evaluation(dict(scores), dict(standard_errors or {}))
    told = _Told(study, trial)
    if told.finished:
        told.check_same(evaluation)
        return
    names = dict.fromkeys([*told.plan.objective_names, *(bound.name for bound in told.plan.constraints)])
    unknown = sorted({*scores, *(standard_errors or {})} - {*names})
    if unknown:
        known = ", ".join(names)
        raise UserError(f"study {study.name!r} has no objective {unknown[0]!r} (it has {known})")
    try:
        complete(told.plan, study.optuna, told.ledger, told.proposal(), evaluation)
    except EvaluationError as error:
        raise UserError(f"trial {trial} of study {study.name!r}: {error}") from None
    told.check_same(evaluation)  # somebody else may have told it at the same moment


def tell_failed(name: str, trial: int, reason: str, *, storage: str = DEFAULT_STORAGE) -> None:
    """An asked trial could not be scored; telling so again changes nothing."""
    fail_study(load_study(name, storage=storage), trial, reason)


def fail_study(study: Study, trial: int, reason: str) -> None:
    """See ``tell_failed``."""
    from mergefront.optimizer.search.ledger import Failure
    from mergefront.optimizer.search.loop import give_up

    told = _Told(study, trial)
    if told.finished:
        if told.values() is not None:
            raise ConflictError(f"trial {trial} of study {study.name!r} is finished already, with scores")
        return
    give_up(study.optuna, told.ledger, told.proposal(), Failure("reported", reason or "no reason was given"))


class UnknownTrialError(UserError):
    """A trial that was never handed out."""


class ConflictError(UserError):
    """A finished trial that is told something else."""


class _Told:
    """A trial that somebody reports on."""

    def __init__(self, study: Study, trial: int) -> None:
        self.study = study
        self.plan = plan_of(self.study)
        self.ledger = self.study.ledger
        found = self.ledger.claim_of(trial)
        if found is None:
            raise UnknownTrialError(
                f"study {study.name!r} has no trial {trial}; 'mergefront ask {study.name}' opens one"
            )
        self.trial = trial
        self.claim, self.finished = found

    def values(self) -> list[float] | None:
        """What the trial was told, in the objectives' order."""
        told: list[float] | None = self.study.optuna.get_trials(deepcopy=False)[self.trial].values
        return told

    def proposal(self) -> Proposal:
        from mergefront.optimizer.search.loop import proposal_of

        return proposal_of(self.plan, self.study.optuna, self.claim)

    def check_same(self, evaluation: Evaluation) -> None:
        """Raises ``ConflictError`` when the trial was told something else."""
        values = self.values()
        given = [evaluation.scores.get(name) for name in self.plan.objective_names]
        if values != given:
            raise ConflictError(
                f"trial {self.trial} of study {self.study.name!r} was told already, with other scores: {values}"
            )
