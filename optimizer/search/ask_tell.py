"""Ask for a recipe and tell its scores later: a search that is driven from outside.

An asked trial is leased: when it is not told in time, the next ask hands the same trial out again. Telling is
idempotent, so that a harness may repeat itself after a fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import optuna

from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores, finite_number
from mergefront.optimizer.search.ledger import Claim, Failure, Ledger
from mergefront.optimizer.search.loop import Proposal, SearchPlan, complete, give_up, proposal_of, propose, take_turn

DEFAULT_LEASE = 24 * 3600.0
"""Seconds."""
_ROUNDING = 1e-3


class UnknownTrialError(UserError):
    """A trial that was never handed out."""


class ConflictError(UserError):
    """A finished trial that is told something else."""


def ask(plan: SearchPlan, study: optuna.Study, ledger: Ledger) -> Proposal | None:
    """The next trial to evaluate, or None when the budget is spent or handed out; ``ledger`` has a lease.

    Recipes that were evaluated before are told by themselves.
    """
    while (claim := ledger.claim(plan.slots)) is not None:
        try:
            take_turn(study, ledger, claim)
            proposal = propose(plan, study, ledger, claim)
            known = ledger.find(proposal.recipe)
            if known is None:
                return proposal
            complete(plan, study, ledger, proposal, known, reused=True)
        except BaseException:  # nobody got it, so it is not theirs for the time of the lease
            ledger.release(claim)
            raise
    return None


def tell(plan: SearchPlan, study: optuna.Study, ledger: Ledger, trial: int, evaluation: Evaluation) -> None:
    """Keep what an asked trial scored; telling the same scores again changes nothing.

    Raises ``UserError`` for other scores than those told before, an unknown trial, and a score that is missing or not
    finite.
    """
    claim, is_finished = _handed_out(study, ledger, trial)
    if not is_finished:
        try:
            outcome = complete(plan, study, ledger, proposal_of(plan, study, claim), evaluation)
        except EvaluationError as error:
            raise UserError(f"trial {trial} of study {study.study_name!r}: {error}") from None
        if not outcome.told_before:
            return
    values = _values(study, trial)  # perhaps told before, or by somebody else at the same moment
    if values != [evaluation.scores.get(name) for name in plan.objective_names]:
        raise ConflictError(f"trial {trial} of study {study.study_name!r} has other scores already: {values}")


def tell_failed(plan: SearchPlan, study: optuna.Study, ledger: Ledger, trial: int, reason: str) -> None:
    """An asked trial could not be scored; telling so again changes nothing."""
    claim, is_finished = _handed_out(study, ledger, trial)
    if not is_finished:
        failure = Failure("reported", reason or "no reason was given")
        give_up(study, ledger, proposal_of(plan, study, claim), failure)
    elif _values(study, trial) is not None:
        raise ConflictError(f"trial {trial} of study {study.study_name!r} is finished already, with scores")


def told_evaluation(
    plan: SearchPlan,
    scores: Mapping[str, float],
    standard_errors: Mapping[str, float],
    items: Mapping[str, Mapping[str, float]],
) -> Evaluation:
    """What somebody tells of a trial, checked.

    ``items`` has the score of every item by its id, by objective; where there are some, score and standard error are
    those of their mean, and need not be told. Raises ``UserError`` for names that the search does not know, numbers
    that are none, and a score that is not the mean of its items.
    """
    names = list(dict.fromkeys([*plan.objective_names, *(bound.name for bound in plan.constraints)]))
    for name in (*scores, *standard_errors, *items):
        if name not in names:
            raise UserError(f"the study has no objective {name!r} {did_you_mean(name, names)}")
    by_item = {name: _items(name, scored) for name, scored in items.items()}
    told = {name: _number(score, f"objective {name!r}") for name, score in scores.items()}
    for name, found in by_item.items():
        if name in told and not math.isclose(told[name], found.mean, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
            raise UserError(
                f"{name!r} is given as {told[name]:g}, and the mean of its {len(found.ids)} items is {found.mean:g}; "
                "leave the score out, or tell items in its unit"
            )
    errors = {name: found.standard_error for name, found in by_item.items() if len(found.ids) > 1}
    for name, error in standard_errors.items():
        errors[name] = _number(error, f"the standard error of {name!r}")
        if errors[name] < 0:
            raise UserError(f"the standard error of {name!r} is {error:g}; it must be at least 0")
    means = {name: found.mean for name, found in by_item.items()}
    return Evaluation({**means, **told}, errors, by_item)


def _items(name: str, scored: Mapping[str, float]) -> ItemScores:
    if not isinstance(scored, Mapping) or not scored:
        raise UserError(f"items of {name!r}: tell at least one, as a mapping from the item's id to its score")
    numbers = [_number(score, f"item {item!r} of {name!r}") for item, score in scored.items()]
    return ItemScores(tuple(map(str, scored)), tuple(numbers))


def _number(given: float, what: str) -> float:
    try:
        return finite_number(given, what)
    except EvaluationError as error:
        raise UserError(str(error)) from None


def _handed_out(study: optuna.Study, ledger: Ledger, trial: int) -> tuple[Claim, bool]:
    """The claim of a trial that somebody reports on, and whether it is finished."""
    found = ledger.claim_of(trial)
    if found is None:
        name = study.study_name
        raise UnknownTrialError(f"study {name!r} has no trial {trial}; 'mergefront ask {name}' opens one")
    return found


def _values(study: optuna.Study, trial: int) -> list[float] | None:
    """What a finished trial was told, in the objectives' order; None for a failure."""
    told: list[float] | None = study.get_trials(deepcopy=False)[trial].values
    return told
