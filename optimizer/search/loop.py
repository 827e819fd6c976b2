"""The search loop: claim a slot of the budget, ask, evaluate, keep, tell.

It knows neither weights nor HTTP nor SQL. Whatever finished is in the ledger before the next
evaluation starts, so that a kill at any instant loses at most the evaluation under way, and a
resumed search proposes the trials that the uninterrupted one would have proposed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mergefront.optimizer.errors import REFUSED, SearchStoppedError
from mergefront.optimizer.racing.race import ItemRace, RacingSettings
from mergefront.optimizer.racing.standings import Standings
from mergefront.optimizer.recipes.anchors import (
    METRIC_WEIGHTED,
    Anchor,
    GivenRecipe,
    WarmStartRecipe,
    expert_anchor,
    metric_weighted,
)
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.scores.constraints import COSTS, Constraint, checked_violations
from mergefront.optimizer.scores.evaluation import RACED, Evaluation, EvaluationRequest, Evaluator, checked_scores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import (
    ANCHOR,
    CONSTRAINT_ERRORS,
    CONSTRAINTS,
    FAILURE,
    MARGINS,
    OUTSIDE_SPACE,
    RECIPE,
    REUSED,
    SEED,
    SLOT,
    STANDARD_ERRORS,
    STOPPED,
    VIOLATIONS,
    expected_improvement,
)
from mergefront.optimizer.search.item_margins import kept_margins
from mergefront.optimizer.search.ledger import Attributes, Claim, Failure, Ledger
from mergefront.optimizer.search.outside_code import failure_of, storable, undisturbed
from mergefront.optimizer.search.restated_trials import restated
from mergefront.optimizer.search.stopping import (
    CONSECUTIVE_FAILURES,
    NEVER,
    Stop,
    StopRule,
    StopWatch,
    has_common_cause,
)
from mergefront.optimizer.search.study_view import StudyAtOneMoment

TOLERATED_DEATHS = 1
"""A trial on which more processes died than that (killed, out of memory, crashed) is given up as failed."""
PATIENCE_SECONDS = 1.0
"""How often a worker that has nothing to do looks whether another one has died."""


@dataclass(frozen=True)
class TrialOutcome:
    """What happened to one trial; ``evaluation`` is None when it failed."""

    number: int
    slot: int
    recipe: Recipe
    anchor: str | None
    evaluation: Evaluation | None
    failure: Failure | None = None
    reused: bool = False
    violations: tuple[float, ...] = ()
    told_before: bool = False
    """Whether somebody else had told the trial by then, perhaps something else."""


@dataclass(frozen=True)
class SearchPlan:
    """Everything the loop needs besides where to keep and how to score.

    With ``racing`` candidates are asked no more items than needed, in an order drawn from ``seed``.
    """

    space: MergeSpace
    objectives: tuple[Objective, ...]
    anchors: tuple[Anchor, ...]
    budget: int
    racing: RacingSettings | None = None
    seed: int = 0

    stop: StopRule = NEVER
    warm_start_recipes: tuple[WarmStartRecipe, ...] = ()
    """Evaluated after the anchors."""
    searches: bool = True
    """False: the anchors and the warm start's recipes are all there is to evaluate, and no sampler is asked."""
    side_tasks: tuple[str, ...] = ()
    """Asked as well, though nothing is optimised on them."""
    constraints: tuple[Constraint, ...] = ()
    """What a candidate has to satisfy; their numbers are asked for beside the objectives."""
    standings: Standings = field(default_factory=Standings, compare=False, repr=False)
    """What is known of raced candidates, kept from trial to trial."""

    @property
    def objective_names(self) -> tuple[str, ...]:
        return tuple(objective.name for objective in self.objectives)

    @property
    def requested(self) -> tuple[str, ...]:
        """The numbers to ask an evaluator for: the objectives, then what else the constraints bound."""
        others = [constraint.name for constraint in self.constraints if constraint.name not in COSTS]
        return tuple(dict.fromkeys([*self.objective_names, *others, *self.side_tasks]))

    @property
    def slots(self) -> int:
        """How many evaluations the plan has room for."""
        return self.budget if self.searches else len(self.anchors) + len(self.warm_start_recipes)


@dataclass(frozen=True)
class Proposal:
    """A running trial and the recipe that it evaluates; ``anchor`` is its name if it is one."""

    claim: Claim
    trial: FrozenTrial
    recipe: Recipe
    anchor: str | None

    @property
    def number(self) -> int:
        return self.trial.number


def run_search(
    plan: SearchPlan,
    study: optuna.Study,
    ledger: Ledger,
    evaluator: Evaluator,
    on_trial_end: Callable[[TrialOutcome], None] = lambda outcome: None,
    on_trial_start: Callable[[int, str | None], None] = lambda number, anchor: None,
    should_stop: Callable[[], bool] = lambda: False,
    wait_for_others: bool = False,
) -> Stop:
    """Fill the budget, or as much of it as the plan's rule lets; returns why the call ended.

    ``on_trial_start(trial number, anchor name)`` is called when an evaluation starts and ``on_trial_end`` when
    a trial is told; ``should_stop`` is asked between two trials, and while others propose. With ``wait_for_others`` the
    call lasts until every trial is finished, so that it can take over from workers that die.
    Raises ``SearchStoppedError`` after failures in a row in ``CONSECUTIVE_FAILURES`` regions of the space.
    """
    failed: list[TrialOutcome] = []
    watch = StopWatch(plan.stop)
    if STOPPED in study.user_attrs:
        study.set_user_attr(STOPPED, None)
    while (stop := watch.stop()) is None:
        if should_stop():
            stop = Stop("asked", "somebody asked to stop")
            break
        claim = ledger.claim(plan.slots)
        if claim is None:
            if not (wait_for_others and ledger.others_at_work()):
                stop = Stop("budget", f"the budget of {plan.slots} evaluations is spent")
                break
            time.sleep(PATIENCE_SECONDS)
            continue
        try:
            with ledger.keep_alive(claim):
                if not take_turn(study, ledger, claim, should_stop):
                    ledger.release(claim)
                    continue
                outcome = _fill(plan, study, ledger, evaluator, claim, on_trial_start)
        except BaseException:
            ledger.release(claim)
            raise
        if plan.stop.improvement is not None:
            watch.proposed(expected_improvement(study.get_trials(deepcopy=False)[outcome.number]))
        on_trial_end(outcome)
        if outcome.failure is None or outcome.failure.kind != REFUSED:
            failed = [] if outcome.failure is None else [*failed, outcome]
        if _nothing_can_be_evaluated(plan, study, failed):
            failures = [one.failure for one in failed if one.failure is not None]
            kinds = sorted({failure.kind for failure in failures})
            common = f"all of kind {kinds[0]!r}" if len(kinds) == 1 else f"of the kinds {', '.join(kinds)}"
            raise SearchStoppedError(
                f"{len(failures)} evaluations in a row failed, {common}; the last one: {failures[-1].reason}. "
                "What finished is kept; mend the cause and resume the study"
            )
    study.set_user_attr(STOPPED, {"cause": stop.cause, "reason": stop.reason})
    return stop


def _nothing_can_be_evaluated(plan: SearchPlan, study: optuna.Study, failed: Sequence[TrialOutcome]) -> bool:
    """Whether a row of failures has a cause that further candidates would meet too."""
    if len(failed) < CONSECUTIVE_FAILURES:
        return False
    trials, encoder = study.get_trials(deepcopy=False), Encoder(plan.space.distributions())
    points = [encoder.encode(one.params) if encoder.contains(one.params) else None for one in trials]
    succeeded = [
        point
        for one, point in zip(trials, points, strict=True)
        if one.state == TrialState.COMPLETE and point is not None
    ]
    return has_common_cause([points[outcome.number] for outcome in failed], succeeded)


def _fill(
    plan: SearchPlan,
    study: optuna.Study,
    ledger: Ledger,
    evaluator: Evaluator,
    claim: Claim,
    on_trial_start: Callable[[int, str | None], None],
) -> TrialOutcome:
    proposal = propose(plan, study, ledger, claim)
    on_trial_start(proposal.number, proposal.anchor)
    known = ledger.find(proposal.recipe)
    if known is not None:
        return complete(plan, study, ledger, proposal, known, reused=True)
    if claim.deaths > TOLERATED_DEATHS:
        reason = f"{claim.deaths} processes died while they evaluated it (killed, out of memory, or a crash)"
        return give_up(study, ledger, proposal, Failure("worker died", reason))
    try:
        with undisturbed():
            evaluation = evaluator.evaluate(proposal.recipe, _request(plan, ledger, proposal))
        checked_scores(evaluation, plan.objective_names)
        checked_violations(evaluation, plan.constraints)
        evaluation = storable(evaluation)
    except BaseException as error:
        failure = failure_of(error)
        if failure is None:
            raise
        return give_up(study, ledger, proposal, failure)
    return complete(plan, study, ledger, proposal, evaluation)


def _request(plan: SearchPlan, ledger: Ledger, proposal: Proposal) -> EvaluationRequest:
    """What to ask of the evaluator; in a racing search, with everything that was evaluated so far."""
    if plan.racing is None:
        return EvaluationRequest(plan.requested)
    finished = plan.standings.read_from(ledger)
    places = {digest: place for place, digest in enumerate(finished)}
    order = dict.fromkeys(anchor.recipe.digest for anchor in plan.anchors)
    race = ItemRace(
        plan.racing,
        plan.seed,
        plan.objectives,
        tuple(finished.values()),
        tuple(places[digest] for digest in order if digest in places),
        proposal.anchor is not None,
        plan.standings,
    )
    return EvaluationRequest(plan.requested, race=race)


def take_turn(
    study: optuna.Study, ledger: Ledger, claim: Claim, should_stop: Callable[[], bool] = lambda: False
) -> bool:
    """Wait until a claimed slot may be proposed; False when ``should_stop`` said so meanwhile.

    Slots are proposed one after the other, in order, so that each proposal sees those before it; a sampler that looks
    at no running trials says so (``sees_pending``). To be called before the trial is there: samplers look at trials of
    smaller numbers only.
    """
    is_free = not claim.in_line or not getattr(study.sampler, "sees_pending", True)
    return is_free or ledger.wait_for_turn(claim, should_stop)


def propose(plan: SearchPlan, study: optuna.Study, ledger: Ledger, claim: Claim) -> Proposal:
    """The recipe of a claimed slot whose turn it is: an anchor, or what the study's sampler asks for."""
    trial_id, anchor = _open_trial(plan, study, claim)
    trials = study.get_trials(deepcopy=False)
    frozen = next(trial for trial in reversed(trials) if trial._trial_id == trial_id)
    moment = StudyAtOneMoment(study, trials, frozen)
    seen = cast(optuna.Study, moment)
    distributions = plan.space.distributions()
    new: dict[str, Any] = {}
    if anchor is not None:
        recipe = anchor.recipe
    else:
        if plan.racing is not None:
            # It proposes from what is known by now, not from what the trials were told in their day.
            seen = restated(seen, plan.objectives, plan.standings.read_from(ledger), plan.standings)
        study.sampler.before_trial(seen, frozen)
        params = plan.space.settled(_sampled(seen, frozen, distributions))
        recipe = plan.space.recipe(params)
        new = {name: value for name, value in params.items() if name not in frozen.params}
    ledger.bind(claim, frozen, new, distributions, Attributes({RECIPE: recipe.digest}, moment.attributes))
    return Proposal(claim, frozen, recipe, anchor.name if isinstance(anchor, Anchor) else None)


def proposal_of(plan: SearchPlan, study: optuna.Study, claim: Claim) -> Proposal:
    """The proposal that a claimed trial is, from what is stored of it; nothing is sampled."""
    trial = study.get_trials(deepcopy=False)[claim.trial_number] if claim.trial_number is not None else None
    assert trial is not None, "only a claim with a trial is a proposal"
    anchor = _anchor_of(plan, study, trial)
    recipe = anchor.recipe if anchor is not None else plan.space.recipe(trial.params)
    return Proposal(claim, trial, recipe, anchor.name if isinstance(anchor, Anchor) else None)


def _anchor_of(plan: SearchPlan, study: optuna.Study, trial: FrozenTrial) -> GivenRecipe | None:
    """The anchor or warm start's recipe that a trial evaluates, or None."""
    if SEED in trial.user_attrs:
        return next(given for given in plan.warm_start_recipes if given.name == trial.user_attrs[SEED])
    name = trial.user_attrs.get(ANCHOR)
    if name == METRIC_WEIGHTED:
        return _metric_weighted(plan, study)
    return next((anchor for anchor in plan.anchors if anchor.name == name), None)


def _sampled(study: optuna.Study, trial: FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The sampler's proposal for a running trial, by the protocol that ``Trial.suggest_float`` follows.

    Optuna writes parameters one by one as they are suggested; here they are written together.
    """
    sampler = study.sampler
    params = dict(trial.params)
    if len(params) < len(distributions):
        relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        for name, distribution in distributions.items():
            if name in params:
                continue
            value = relative.get(name)
            if value is None or not distribution._contains(distribution.to_internal_repr(value)):
                value = sampler.sample_independent(study, trial, name, distribution)
            params[name] = value
    return {name: params[name] for name in distributions}


def complete(
    plan: SearchPlan,
    study: optuna.Study,
    ledger: Ledger,
    proposal: Proposal,
    evaluation: Evaluation,
    reused: bool = False,
) -> TrialOutcome:
    """Keep an evaluation and tell it, all or nothing.

    Raises ``EvaluationError`` for an objective's score that is missing or not finite.
    """
    scores = checked_scores(evaluation, plan.objective_names)
    values = [scores[name] for name in plan.objective_names]
    attributes, violations = told_attributes(plan.objectives, plan.constraints, evaluation)
    if reused:
        attributes = replace(attributes, user={**attributes.user, REUSED: True})
    claim, trial = proposal.claim, proposal.trial
    study.sampler.after_trial(study, trial, TrialState.COMPLETE, values)
    is_first = ledger.finish(claim, trial, proposal.recipe, evaluation, values, attributes, keep=not reused)
    given = (proposal.recipe, proposal.anchor, evaluation)
    said = (reused, tuple(violations), not is_first)
    return TrialOutcome(trial.number, claim.slot, *given, None, *said)


def told_attributes(
    objectives: Sequence[Objective], constraints: Sequence[Constraint], evaluation: Evaluation
) -> tuple[Attributes, list[float]]:
    """What a trial keeps of its evaluation beside the values, and the constraints' violations.

    Raises ``EvaluationError`` for a constrained number that is missing or not finite.
    """
    attributes: dict[str, Any] = {}
    system: dict[str, Any] = {}
    errors = [_told_error(evaluation, objective.name) for objective in objectives]
    if any(error is not None for error in errors):
        attributes[STANDARD_ERRORS] = [_finite(error) for error in errors]
    if RACED not in evaluation.details:
        margins = kept_margins([objective.name for objective in objectives], evaluation)
        if margins is not None:
            system[MARGINS] = margins
    violations = checked_violations(evaluation, constraints)
    if violations:
        system[VIOLATIONS] = violations
        attributes[CONSTRAINTS] = {str(c): c.reported(evaluation) for c in constraints}
        attributes[CONSTRAINT_ERRORS] = [_finite(_told_error(evaluation, c.name)) for c in constraints]
    return Attributes(attributes, system), violations


def _told_error(evaluation: Evaluation, name: str) -> float | None:
    """The standard error that samplers see: where a candidate's items all agree, they have no spread.

    That they might differ by chance (``rule_of_succession``) is common to all candidates that answered the same items.
    """
    items = evaluation.items.get(name)
    if items is not None and RACED not in evaluation.details and len(set(items.scores)) == 1 < len(items.scores):
        return 0.0
    return evaluation.standard_errors.get(name)


def give_up(study: optuna.Study, ledger: Ledger, proposal: Proposal, failure: Failure) -> TrialOutcome:
    """Keep why a recipe could not be scored and tell the trial as failed, all or nothing."""
    failure = failure.bounded()
    claim, trial = proposal.claim, proposal.trial
    study.sampler.after_trial(study, trial, TrialState.FAIL, None)
    ledger.finish(claim, trial, proposal.recipe, failure, None, Attributes({FAILURE: str(failure)}), keep=True)
    return TrialOutcome(trial.number, claim.slot, proposal.recipe, proposal.anchor, None, failure)


def _open_trial(plan: SearchPlan, study: optuna.Study, claim: Claim) -> tuple[int, GivenRecipe | None]:
    """Id of the running trial of a claimed slot (the abandoned one if there is one, else a new one), and its anchor."""
    running = () if claim.fresh else study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        if trial.user_attrs.get(SLOT) == claim.slot:
            return trial._trial_id, _anchor_of(plan, study, trial)
    anchor = _anchor_for(plan, study, claim.slot)
    attributes: dict[str, Any] = {SLOT: claim.slot}
    params: Mapping[str, Any] = {}
    distributions: Mapping[str, BaseDistribution] = {}
    if anchor is not None:
        attributes[ANCHOR if isinstance(anchor, Anchor) else SEED] = anchor.name
        if anchor.outside_space:
            attributes[OUTSIDE_SPACE] = True
        params, distributions = anchor.params, plan.space.distributions()
    template = create_trial(
        state=TrialState.RUNNING, params=dict(params), distributions=dict(distributions), user_attrs=attributes
    )
    # One transaction for the whole trial: Optuna's public add_trial does the same but hides the id.
    return study._storage.create_new_trial(study._study_id, template_trial=template), anchor


def _anchor_for(plan: SearchPlan, study: optuna.Study, slot: int) -> GivenRecipe | None:
    if slot < len(plan.anchors):
        return plan.anchors[slot]
    if slot == len(plan.anchors) and plan.searches:
        return _metric_weighted(plan, study)
    number = slot - len(plan.anchors) - plan.searches
    return plan.warm_start_recipes[number] if number < len(plan.warm_start_recipes) else None


def _metric_weighted(plan: SearchPlan, study: optuna.Study) -> Anchor | None:
    """The metric-weighted average, once every expert's score on its own objective is known."""
    columns = {objective.name: (index, objective) for index, objective in enumerate(plan.objectives)}
    told = {
        trial.user_attrs.get(ANCHOR): trial.values
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    }
    own: dict[str, float] = {}
    for expert in plan.space.models:
        values = told.get(expert_anchor(expert))
        if expert not in columns or values is None:
            return None
        index, objective = columns[expert]
        own[expert] = objective.sign * values[index]
    return metric_weighted(plan.space, own)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
