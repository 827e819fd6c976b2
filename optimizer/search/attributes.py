"""What trials and studies carry besides parameters and values: the contract between search loop and samplers.

| of | key | written by | value |
| --- | --- | --- | --- |
| trial, user | ``mergefront:slot`` | search loop | which slot of the budget the trial fills |
| trial, user | ``mergefront:anchor`` | search loop | name of the anchor that this trial evaluates |
| trial, user | ``mergefront:recipe`` | search loop | digest of the recipe that this trial evaluates |
| trial, user | ``mergefront:outside_space`` | search loop | true: the recipe is no point of the space |
| trial, user | ``mergefront:standard_errors`` | search loop | one per objective, null where unknown or exact |
| trial, user | ``mergefront:seed`` | search loop | name of the warm start's recipe that this trial evaluates |
| trial, user | ``mergefront:failure`` | search loop | why the trial failed |
| trial, user | ``mergefront:reused`` | search loop | true: the scores of an equal recipe were taken from the ledger |
| trial, user | ``mergefront:from`` | warm start | "study/trial" that this trial was taken over from |
| trial, user | ``mergefront:constraints`` | search loop | constraint as written to the number it bounds |
| trial, user | ``mergefront:constraint_errors`` | search loop | one per constraint, null where unknown or exact |
| trial, system | ``constraints`` | search loop | violations, at most 0 where satisfied, in the constraints' order |
| study, user | ``mergefront:search_space`` | search loop | parameter name to Optuna's JSON of its distribution |
| study, user | ``mergefront:stopped`` | search loop | why the last run ended, ``{"cause": ..., "reason": ...}`` |
| study, user | ``mergefront:warm_start`` | warm start, when complete | name and recipe of what follows the anchors |
| study, user | ``mergefront:tracked`` | tracking | by tracker: its run, and which trials it was told |
| trial, system | ``mergefront:margins`` | search loop | per objective its items' margins, or null (``item_margins``) |
| trial, system | ``mergefront:proposal`` | samplers | ``{"stage": ..., "params": {...}}``, ``"improvement"`` |
| trial, system | ``mergefront:kept_loras`` | Evo-Merging | the LoRAs that are searched, where some are left out |

The list under ``constraints`` is Optuna's older form: its samplers read it as ``trial.constraints``, in this order and
named by index, and it is the only form that optuna-dashboard 0.21 knows.

An anchor is used to normalise the objectives. A trial outside the space never trains a surrogate, but its
values count for normalisation and for the front that a proposal has to improve. All attributes must be there
before the trial is told; ``mergefront:anchor`` and ``mergefront:outside_space`` as soon as the trial exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution

from mergefront.optimizer.scores.evaluation import LARGEST

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SLOT = "mergefront:slot"
ANCHOR = "mergefront:anchor"
RECIPE = "mergefront:recipe"
OUTSIDE_SPACE = "mergefront:outside_space"
STANDARD_ERRORS = "mergefront:standard_errors"
MARGINS = "mergefront:margins"
SEED = "mergefront:seed"
FAILURE = "mergefront:failure"
REUSED = "mergefront:reused"
WARM_START = "mergefront:from"
CONSTRAINTS = "mergefront:constraints"
CONSTRAINT_ERRORS = "mergefront:constraint_errors"
VIOLATIONS = "constraints"
SEARCH_SPACE = "mergefront:search_space"
STOPPED = "mergefront:stopped"
TRACKED = "mergefront:tracked"
WARM_START_RECIPES = "mergefront:warm_start"
PROPOSAL = "mergefront:proposal"
KEPT_LORAS = "mergefront:kept_loras"


def is_anchor(trial: FrozenTrial) -> bool:
    """Whether the trial evaluates an anchor."""
    return bool(trial.user_attrs.get(ANCHOR))


def is_outside_space(trial: FrozenTrial) -> bool:
    """Whether the trial's recipe is no point of the search space."""
    return bool(trial.user_attrs.get(OUTSIDE_SPACE))


def standard_errors(trial: FrozenTrial, objectives: int) -> list[float | None]:
    """The trial's standard error per objective, in raw units; None where unknown, exact or not written."""
    return _errors(trial.user_attrs.get(STANDARD_ERRORS), objectives)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a told trial satisfies every constraint that it reports."""
    return all(violation <= 0.0 for violation in trial.constraints.values())


def violation_errors(trial: FrozenTrial) -> dict[str, float | None]:
    """The standard error of each violation, by its name in ``trial.constraints``; None where unknown or exact."""
    names = list(trial.constraints)
    return dict(zip(names, _errors(trial.user_attrs.get(CONSTRAINT_ERRORS), len(names)), strict=True))


def _errors(written: Any, count: int) -> list[float | None]:
    """``count`` stored standard errors; None where unknown, exact or not written, and for what can be none."""
    if not isinstance(written, Sequence) or len(written) != count:
        return [None] * count
    return [float(error) if isinstance(error, int | float) and 0.0 <= error <= LARGEST else None for error in written]


def write_search_space(study: Study, space: Mapping[str, BaseDistribution]) -> None:
    """Stores the search space, so that every worker knows it before the first trial finishes."""
    study.set_user_attr(SEARCH_SPACE, {name: distribution_to_json(space[name]) for name in space})


def read_search_space(study: Study) -> dict[str, BaseDistribution] | None:
    """The stored search space, in the order in which it was written; None when none is stored."""
    stored = study.user_attrs.get(SEARCH_SPACE)
    if stored is None:
        return None
    return {name: json_to_distribution(text) for name, text in stored.items()}


def write_proposal(
    study: Study, trial: FrozenTrial, stage: str, params: Mapping[str, Any], improvement: float | None = None
) -> None:
    """Publishes the whole proposal at once; ``improvement`` is what it is expected to add to the hypervolume.

    Optuna commits a running trial's parameters one by one, so that other workers would see half a point.
    """
    # Optuna has no public way to write a system attribute since 5.0; its own samplers do the same.
    content: dict[str, Any] = {"stage": stage, "params": dict(params)}
    if improvement is not None:
        content["improvement"] = improvement
    study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, content)


def proposed_params(trial: FrozenTrial) -> dict[str, Any]:
    """The trial's parameters, completed by the published proposal while the trial is running.

    A waiting trial answers with the parameters it was enqueued with.
    """
    published = trial.system_attrs.get(PROPOSAL, {"params": {}})["params"]
    return {**published, **trial.system_attrs.get("fixed_params", {}), **trial.params}


def expected_improvement(trial: FrozenTrial) -> float | None:
    """The hypervolume that the trial was expected to add when it was proposed; None where its sampler did not say."""
    published = trial.system_attrs.get(PROPOSAL)
    found = None if published is None else published.get("improvement")
    return None if found is None else float(found)


def proposal_stage(trial: FrozenTrial) -> str | None:
    """How the trial was proposed: "anchor", "sobol", "model" or "fallback"; None when another sampler did."""
    published = trial.system_attrs.get(PROPOSAL)
    return None if published is None else str(published["stage"])
