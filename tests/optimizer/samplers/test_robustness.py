"""Whatever a study holds, a sampler of ours proposes a point of the space, and the same one in any process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mergefront.optimizer.samplers.registry import make_sampler
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import proposed_params

SPACE: dict[str, BaseDistribution] = {f"weight[{name}]": FloatDistribution(0.0, 1.0) for name in "abc"}

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "mm-mo": ("mm-mo", {"n_startup": 3}),
    "mm-mo paper": ("mm-mo", {"variant": "paper", "n_startup": 3, "batch": 2}),
    "evo-merging": ("evo-merging", {}),
    "map": ("map", {"n_startup": 3}),
    "map nested": ("map", {"n_startup": 3, "nested": True}),
    "cma-es": ("cma-es", {"population_size": 4}),
    "sobol": ("sobol", {}),
}


def objectives(name: str) -> int:
    return 1 if name == "cma-es" else 2


def ours(name: str) -> optuna.samplers.BaseSampler:
    sampler, options = OURS[name]
    named = [Objective(f"task {index}") for index in range(objectives(name))]
    return make_sampler(sampler, seed=3, search_space=SPACE, objectives=named, options=options)


def points(count: int) -> list[dict[str, Any]]:
    rows = np.random.default_rng(0).random((count, len(SPACE)))
    return [dict(zip(SPACE, row.tolist(), strict=True)) for row in rows]


def told(params: dict[str, Any], values: list[float]) -> FrozenTrial:
    return create_trial(params=params, distributions=SPACE, values=values)


def failed(params: dict[str, Any]) -> FrozenTrial:
    return create_trial(params=params, distributions=SPACE, state=TrialState.FAIL)


def scored(params: dict[str, Any], m: int, scale: float = 1.0) -> list[float]:
    x = np.array(list(params.values()))
    return [scale * float(-((x - 0.2 - 0.3 * index) ** 2).sum()) for index in range(m)]


Trials = Callable[[int], list[FrozenTrial]]
CASES: dict[str, Trials] = {
    "constant": lambda m: [told(p, [0.5] * m) for p in points(8)],
    "one point many times": lambda m: [told(points(1)[0], [0.1 * k + j for j in range(m)]) for k in range(8)],
    "one finished": lambda m: [*(failed(p) for p in points(7)[1:]), told(points(1)[0], [0.5] * m)],
    "all failed": lambda m: [failed(p) for p in points(8)],
    "huge": lambda m: [told(p, scored(p, m, 1e12)) for p in points(8)],
    "tiny": lambda m: [told(p, scored(p, m, 1e-12)) for p in points(8)],
    "huge and tiny": lambda m: [told(p, scored(p, m, 1e12 if k % 2 else 1e-12)) for k, p in enumerate(points(8))],
}


def study_of(name: str, trials: list[FrozenTrial]) -> optuna.Study:
    study = optuna.create_study(directions=["maximize"] * objectives(name), sampler=ours(name))
    study.add_trials(trials)
    return study


@pytest.mark.cases(12)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OURS)
def test_strange_histories_give_points_of_the_space(name: str, case: str) -> None:
    m = objectives(name)
    study = study_of(name, CASES[case](m))
    proposed = []
    for number in range(4):
        trial = study.ask(SPACE)
        proposed.append(tuple(trial.params.values()))
        assert all(type(value) is float and 0.0 <= value <= 1.0 for value in trial.params.values())
        if number % 2:
            study.tell(trial, scored(trial.params, m))
        else:
            study.tell(trial, state=TrialState.FAIL)
    assert len(set(proposed)) > 1, "the same point for ever"


@pytest.mark.parametrize("name", OURS)
def test_a_proposal_depends_on_seed_and_told_trials_alone(name: str) -> None:
    """Not on the sampler's own past, and not on the order in which those under way were told."""
    m = objectives(name)

    def grown(order: tuple[int, ...]) -> optuna.Study:
        study = study_of(name, [told(p, scored(p, m)) for p in points(6)])
        waiting = [study.ask(SPACE) for _ in order]
        for index in order:
            study.tell(waiting[index], scored(waiting[index].params, m))
        return study

    first, other = grown((0, 1, 2)), grown((2, 0, 1))
    assert [trial.params for trial in first.trials] == [trial.params for trial in other.trials]
    following = first.ask(SPACE).params
    assert other.ask(SPACE).params == following
    fresh = study_of(name, [trial for trial in first.trials if trial.state == TrialState.COMPLETE])
    assert fresh.ask(SPACE).params == following


@pytest.mark.parametrize("name", OURS)
def test_the_proposal_of_a_process_that_died_stands(name: str) -> None:
    m = objectives(name)
    study = study_of(name, [told(p, scored(p, m)) for p in points(6)])
    abandoned = study.ask()
    first = abandoned.suggest_float("weight[a]", 0.0, 1.0)
    published = proposed_params(study.trials[abandoned.number])
    study.tell(study.ask(SPACE), [0.9] * m)  # another process goes on meanwhile
    taken_over = optuna.trial.Trial(study, abandoned._trial_id)
    params = {parameter: taken_over.suggest_float(parameter, 0.0, 1.0) for parameter in SPACE}
    assert params == published and params["weight[a]"] == first
