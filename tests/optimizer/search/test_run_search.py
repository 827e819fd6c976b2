"""One run of the loop: what it tells the sampler, what it keeps of a trial, and when it ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

import mergefront as mf
from mergefront.optimizer.recipes.anchors import METRIC_WEIGHTED, WarmStartRecipe, anchors
from mergefront.optimizer.scores.constraints import constraints_from
from mergefront.optimizer.scores.evaluation import FunctionEvaluator
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.ask_tell import ask, tell, told_evaluation
from mergefront.optimizer.search.attributes import is_outside_space, write_proposal
from mergefront.optimizer.search.loop import SearchPlan, TrialOutcome, run_search
from mergefront.optimizer.search.stopping import CONSECUTIVE_FAILURES, StopRule
from mergefront.storage.database import Database
from mergefront.storage.ledger import StudyLedger
from mergefront.storage.studies import create_or_load

SPACE = mf.MergeSpace(["maths", "french"], method="ties", parameters={"weight": [0, 1], "density": 0.5})
ANCHORS = tuple(anchors(SPACE))


class Noted(optuna.samplers.RandomSampler):
    """Proposes at random, says of every proposal that it is hardly worth it, and notes what it is told."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.began: list[int] = []
        self.ended: list[tuple[int, TrialState]] = []

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.began.append(trial.number)
        write_proposal(study, trial, "model", {}, improvement=1e-6)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.ended.append((trial.number, state))


class Run:
    """A study in a file, and searches of it."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(f"sqlite:///{folder}/study.db")
        objectives = [Objective("maths"), Objective("french")]
        record = create_or_load(self.database, "run", {}, objectives, root=".", evaluations=99, versions={})
        self.study_id, self.sampler = record.study_id, Noted()
        self.study = optuna.load_study(study_name="run", storage=self.database.optuna_storage, sampler=self.sampler)
        self.asked: list[mf.Recipe] = []

    def ledger(self) -> StudyLedger:
        return StudyLedger(self.database, self.study_id, {})

    def plan(self, budget: int, **more: Any) -> SearchPlan:
        return SearchPlan(SPACE, (Objective("maths"), Objective("french")), ANCHORS, budget, **more)

    def search(self, plan: SearchPlan, score: Callable[[mf.Recipe], Any] | None = None, **more: Any) -> str:
        def evaluate(recipe: mf.Recipe) -> Any:
            self.asked.append(recipe)
            return (score or scores)(recipe)

        return run_search(plan, self.study, self.ledger(), FunctionEvaluator(evaluate), **more).cause


def scores(recipe: mf.Recipe) -> dict[str, float]:
    return {name: float(recipe.params[f"weight[{name}]"]) for name in SPACE.models}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_sampler_hears_of_every_trial_that_it_proposed_and_of_how_each_ended(run: Run) -> None:
    """Optuna's samplers keep their generation, their restarts and their constraints in these calls."""

    def fails_once(recipe: mf.Recipe) -> dict[str, float]:
        return {} if len(run.asked) == 2 else scores(recipe)

    run.search(run.plan(8), fails_once)
    failed = {1}
    assert [number for number, _ in run.sampler.ended] == list(range(8))
    assert {number for number, state in run.sampler.ended if state == TrialState.FAIL} == failed
    anchored = {trial.number for trial in run.study.get_trials() if "mergefront:anchor" in trial.user_attrs}
    assert run.sampler.began == [number for number in range(8) if number not in anchored]


def test_proposals_that_are_not_worth_it_end_the_run_after_the_anchors(run: Run) -> None:
    assert run.search(run.plan(30, stop=StopRule(improvement=0.5, asks=2))) == "improvement"
    assert len(run.asked) == len(ANCHORS) + 1 + 2


def test_a_run_ends_at_the_first_moment_at_which_nothing_can_be_evaluated(run: Run) -> None:
    """Each evaluation that fails for a full disk is paid for."""
    with pytest.raises(mf.SearchStoppedError, match=f"^{CONSECUTIVE_FAILURES} evaluations in a row failed"):
        run.search(run.plan(30), lambda recipe: {})
    assert len(run.asked) == CONSECUTIVE_FAILURES == 5


@pytest.mark.parametrize("size", [float("nan"), float("inf"), None])
def test_a_constrained_number_that_is_none_costs_one_trial_and_not_the_run(run: Run, size: float | None) -> None:
    """A merge without it is not known to hold the bound; the candidates after it are."""

    def measured(recipe: mf.Recipe) -> mf.Evaluation:
        known = {} if size is None else {"size": size}
        return mf.Evaluation({**scores(recipe), **(known if len(run.asked) == 2 else {"size": 3.0})})

    assert run.search(run.plan(6, constraints=constraints_from(["size <= 4"])), measured) == "budget"
    assert [state for _, state in run.sampler.ended].count(TrialState.FAIL) == 1
    assert len(run.asked) == 6 and "size" in run.study.get_trials()[1].user_attrs["mergefront:failure"]


def test_whoever_watches_hears_of_each_evaluation_before_it_starts_and_after_it_ended(run: Run) -> None:
    """A progress bar that names a candidate when it is done leaves its reader in the dark for the hours before."""
    heard: list[str] = []

    def evaluate(recipe: mf.Recipe) -> dict[str, float]:
        heard.append("evaluated")
        return scores(recipe)

    run.search(
        run.plan(8),
        evaluate,
        on_trial_start=lambda number, anchor: heard.append(f"{number} {anchor}"),
        on_trial_end=lambda outcome: heard.append(f"end {outcome.number}"),
    )
    names = [trial.user_attrs.get("mergefront:anchor") for trial in run.study.get_trials()]
    assert heard == [said for k, name in enumerate(names) for said in (f"{k} {name}", "evaluated", f"end {k}")]
    assert names[0] == "base" and names[-1] is None


class InACorner(Noted):
    """Proposes points near one corner, one beside the other."""

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        return {f"weight[{name}]": 0.9 + 0.01 * (trial.number % 9) for name in SPACE.models}


def test_failures_of_one_corner_are_no_reason_to_stop(run: Run) -> None:
    """The sampler learns from them; the rest of the budget would be lost."""
    run.study.sampler = run.sampler = InACorner()
    run.search(run.plan(16), lambda recipe: {} if min(scores(recipe).values()) > 0.8 else scores(recipe))
    assert len(run.asked) > len(ANCHORS) + 1 + CONSECUTIVE_FAILURES
    assert [state for _, state in run.sampler.ended][-CONSECUTIVE_FAILURES:] == [TrialState.FAIL] * CONSECUTIVE_FAILURES


def test_an_average_among_candidates_of_another_method_is_no_point_of_the_space(run: Run) -> None:
    """A surrogate would learn from parameters that do not make this merge."""
    run.search(run.plan(8))
    outside = [is_outside_space(trial) for trial in run.study.get_trials()]
    assert outside == [anchor.outside_space for anchor in ANCHORS] + [False] * (8 - len(ANCHORS))
    assert any(outside)


def given(number: int) -> WarmStartRecipe:
    params = {"weight[maths]": 0.1 * number, "weight[french]": 0.2}
    return WarmStartRecipe(f"given {number}", SPACE.recipe(params), params, False)


@pytest.mark.parametrize("searches", [True, False])
def test_given_recipes_come_after_the_anchors_and_each_once(run: Run, searches: bool) -> None:
    """A comparison asks nothing else, and a search goes on with its sampler."""
    recipes = tuple(map(given, (1, 2, 3)))
    plan = run.plan(12, warm_start_recipes=recipes, searches=searches)
    assert run.search(plan) == "budget" and plan.slots == len(run.asked) == (12 if searches else len(ANCHORS) + 3)
    first = len(ANCHORS) + searches  # a search also has the metric-weighted average
    assert run.asked[first : first + 3] == [one.recipe for one in recipes]
    assert len({recipe.digest for recipe in run.asked}) == len(run.asked)


def test_what_was_asked_for_is_what_the_scores_are_kept_for(run: Run) -> None:
    """Scores that are told hours later belong to the recipe that was handed out, whatever kind of recipe it was."""
    plan = run.plan(10, warm_start_recipes=(given(1), given(2)))
    ledger, asked = run.ledger(), []
    while (proposal := ask(plan, run.study, ledger)) is not None:
        asked.append(proposal)
        tell(plan, run.study, ledger, proposal.number, told_evaluation(plan, scores(proposal.recipe), {}, {}))
    assert [one.anchor for one in asked][: len(ANCHORS) + 2] == [*(one.name for one in ANCHORS), METRIC_WEIGHTED, None]
    assert list(ledger.evaluations()) == [one.recipe.digest for one in asked]


def test_a_worker_ends_with_the_budget_unless_it_is_to_wait_for_others(run: Run) -> None:
    """A worker that waits takes over from one that dies; one that does not is free for other work."""
    other = run.ledger()
    for _ in ANCHORS:
        claim = other.claim(len(ANCHORS))
        assert claim is not None and claim.deaths == 0
    assert run.search(run.plan(len(ANCHORS))) == "budget" and run.asked == []
    stops = iter([False, False, True])
    waited = run.search(run.plan(len(ANCHORS)), wait_for_others=True, should_stop=lambda: next(stops))
    assert waited == "asked" and run.asked == []


def test_nobody_elses_random_numbers_change_during_an_evaluation(run: Run) -> None:
    def draw(recipe: mf.Recipe) -> dict[str, float]:
        random.random(), torch.rand(1)
        return scores(recipe)

    python, torchs = random.getstate(), torch.get_rng_state()
    outcomes: list[TrialOutcome] = []
    run.search(run.plan(3), draw, on_trial_end=outcomes.append)
    assert [outcome.number for outcome in outcomes] == [0, 1, 2]
    assert random.getstate() == python and bool((torch.get_rng_state() == torchs).all())
