"""Ask for a recipe and tell its scores later: a study driven from any outside harness.

An asked trial is leased: when it is not told in time, the next ask hands the same trial out again.
Telling is idempotent, so that a harness may repeat itself after a fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation
from mergefront.optimizer.search.ledger import Claim, Failure
from mergefront.optimizer.search.loop import complete, give_up, proposal_of, propose
from mergefront.running.worker import plan_of
from mergefront.storage import DEFAULT_STORAGE
from mergefront.storage.ledger import StudyLedger
from mergefront.study.stored_study import Study, as_study
from mergefront.versions import versions

DEFAULT_LEASE = 24 * 3600.0


@dataclass(frozen=True)
class Asked:
    """A trial to evaluate; ``anchor`` is its name if it is one."""

    trial: int
    recipe: Recipe
    anchor: str | None

    def to_json(self) -> dict[str, Any]:
        """What an outside harness gets: coefficients, and the recipe as a mergekit configuration."""
        recipe = self.recipe
        shown = {"params": dict(recipe.params), "seed": recipe.seed, "mergekit": recipe.to_mergekit()}
        return {"trial": self.trial, "anchor": self.anchor, **shown}


class UnknownTrialError(UserError):
    """A trial that was never handed out."""


class ConflictError(UserError):
    """A finished trial that is told something else."""


def ask(study: str | Study, *, storage: str = DEFAULT_STORAGE, lease: float = DEFAULT_LEASE) -> Asked | None:
    """The next trial of a study, or None when its budget is spent or handed out.

    Recipes that were evaluated before are told by themselves. ``lease`` is in seconds. A study that is loaded already
    may stand for name and storage.
    """
    if not lease > 0:
        raise UserError(f"lease is {lease:g}; it must be a number of seconds above 0")
    study = as_study(study, storage=storage)
    plan = plan_of(study)
    ledger = StudyLedger(study.database, study.record.study_id, versions(), lease)
    while (claim := ledger.claim(plan.budget)) is not None:
        try:
            proposal = propose(plan, study.optuna, ledger, claim)
            known = ledger.find(proposal.recipe)
            if known is None:
                return Asked(proposal.number, proposal.recipe, proposal.anchor)
            complete(plan, study.optuna, ledger, proposal, known, reused=True)
        except BaseException:  # nobody got it, so it is not theirs for the time of the lease
            ledger.release(claim)
            raise
    return None


def tell(
    study: str | Study,
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
    study = as_study(study, storage=storage)
    evaluation = Evaluation(dict(scores), dict(standard_errors or {}))
    claim, finished = _handed_out(study, trial)
    plan = plan_of(study)
    if not finished:
        names = dict.fromkeys([*plan.objective_names, *(bound.name for bound in plan.constraints)])
        unknown = sorted({*scores, *(standard_errors or {})} - {*names})
        if unknown:
            raise UserError(f"study {study.name!r} has no objective {unknown[0]!r} (it has {', '.join(names)})")
        try:
            complete(plan, study.optuna, study.ledger, proposal_of(plan, study.optuna, claim), evaluation)
        except EvaluationError as error:
            raise UserError(f"trial {trial} of study {study.name!r}: {error}") from None
    values = _values(study, trial)  # perhaps told before, or by somebody else at the same moment
    if values != [evaluation.scores.get(name) for name in plan.objective_names]:
        raise ConflictError(f"trial {trial} of study {study.name!r} was told already, with other scores: {values}")


def tell_failed(study: str | Study, trial: int, reason: str, *, storage: str = DEFAULT_STORAGE) -> None:
    """An asked trial could not be scored; telling so again changes nothing."""
    study = as_study(study, storage=storage)
    claim, finished = _handed_out(study, trial)
    if not finished:
        proposal = proposal_of(plan_of(study), study.optuna, claim)
        give_up(study.optuna, study.ledger, proposal, Failure("reported", reason or "no reason was given"))
    elif _values(study, trial) is not None:
        raise ConflictError(f"trial {trial} of study {study.name!r} is finished already, with scores")


def _handed_out(study: Study, trial: int) -> tuple[Claim, bool]:
    """The claim of a trial that somebody reports on, and whether it is finished."""
    found = study.ledger.claim_of(trial)
    if found is None:
        raise UnknownTrialError(f"study {study.name!r} has no trial {trial}; 'mergefront ask {study.name}' opens one")
    return found


def _values(study: Study, trial: int) -> list[float] | None:
    """What a finished trial was told, in the objectives' order; None for a failure."""
    told: list[float] | None = study.optuna.get_trials(deepcopy=False)[trial].values
    return told
