"""What amortised Pareto fronts promise: a front after a quadratic's worth of trials, and repeatable proposals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

from mergefront.optimizer import MAPSampler
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.map.quadratic import coefficient_count, features, fit_quadratic
from mergefront.optimizer.samplers.map.sampler import amortised_front
from mergefront.optimizer.samplers.registry import make_sampler
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.scores.pareto import hypervolume
from mergefront.optimizer.search.attributes import proposal_stage

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.long
class TestConforms(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: MAPSampler(seed=0, n_startup=3)


SPACE: dict[str, BaseDistribution] = {f"weight[{name}]": FloatDistribution(0.0, 1.0) for name in "abc"}


def two_skills(params: dict[str, float]) -> tuple[float, float]:
    """Two scores that each want another corner, saturating towards 1."""
    x = np.array([params[name] for name in SPACE])
    near = [
        1.0 / (1.0 + math.exp(4.0 * float(((x - corner) ** 2).sum()) - 2.0)) for corner in ([1, 0, 0.5], [0, 1, 0.5])
    ]
    return near[0], near[1]


def optimise(study: Study, trials: int, fails: Callable[[int], bool] = lambda number: False) -> None:
    for _ in range(trials):
        trial = study.ask(SPACE)
        if fails(trial.number):
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, two_skills(trial.params))


def front_volume(study: Study) -> float:
    return hypervolume([trial.values for trial in study.trials if trial.state == TrialState.COMPLETE], [0.0, 0.0])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**31))
def test_a_quadratic_is_found_from_as_many_observations_as_it_has_coefficients(dimension: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = coefficient_count(dimension)
    assert features(np.zeros((1, dimension))).shape == (1, count)
    weights = rng.standard_normal(count)
    x, new = rng.random((2 * count, dimension)), rng.random((5, dimension))
    model = fit_quadratic(x, features(x) @ weights, link=False)
    assert model.predict(new)[0] == pytest.approx(features(new) @ weights, abs=0.05 * max(1.0, np.abs(weights).sum()))


def test_uncertainty_grows_away_from_the_data() -> None:
    rng = np.random.default_rng(0)
    x = 0.3 * rng.random((12, 2))
    model = fit_quadratic(x, np.sin(5.0 * x[:, 0]) + x[:, 1] + 0.01 * rng.standard_normal(12))
    near, far = model.predict(np.array([[0.15, 0.15], [0.9, 0.9]]))[1]
    assert far > 3.0 * near > 0.0


def test_the_amortised_front_lies_between_the_corners() -> None:
    rng = np.random.default_rng(0)
    encoder = Encoder(SPACE)
    x = rng.random((40, 3))
    names = list(SPACE)
    y = np.array([two_skills(dict(zip(names, row, strict=True))) for row in x])
    models = [fit_quadratic(x, y[:, j]) for j in range(2)]
    front = amortised_front(models, x[:1], encoder, rng)
    assert len(front) > 20
    # The true front is the line from corner to corner: a + b = 1, c = 0.5.
    assert np.abs(front[:, 0] + front[:, 1] - 1.0).mean() < 0.15
    assert np.abs(front[:, 2] - 0.5).mean() < 0.15


def test_the_front_is_better_than_as_many_random_points() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=MAPSampler(seed=0, search_space=SPACE))
    optimise(study, 26)
    assert [proposal_stage(trial) for trial in study.trials[:10]] == ["sobol"] * 10
    assert {proposal_stage(trial) for trial in study.trials[10:]} == {"front", "refine"}
    random = optuna.create_study(directions=["maximize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0))
    optimise(random, 100)
    assert front_volume(study) > front_volume(random)


def test_a_killed_search_gets_the_proposals_it_would_have_got() -> None:
    whole = optuna.create_study(directions=["maximize"] * 2, sampler=MAPSampler(seed=3, search_space=SPACE))
    optimise(whole, 20, fails=lambda number: number % 6 == 4)
    resumed = optuna.create_study(directions=["maximize"] * 2)
    for _ in range(4):
        resumed.sampler = MAPSampler(seed=3, search_space=SPACE)
        optimise(resumed, 5, fails=lambda number: number % 6 == 4)
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]


def test_workers_that_ask_together_get_different_points() -> None:
    study = optuna.create_study(directions=["maximize"] * 2, sampler=MAPSampler(seed=0, search_space=SPACE))
    optimise(study, 12)
    asked = [study.ask(SPACE) for _ in range(4)]
    points = np.array([[trial.params[name] for name in SPACE] for trial in asked])
    assert len(np.unique(points, axis=0)) == 4


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e12, 1e-12], [math.inf, 1.0]])
def test_strange_scores_do_not_stop_the_search(values: Sequence[float]) -> None:
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=MAPSampler(seed=0, search_space=SPACE, n_startup=4)
    )
    for number in range(9):
        trial = study.ask(SPACE)
        study.tell(trial, values if number % 3 else [0.5, 0.5])
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 9


def test_a_tournament_of_pairs_needs_few_trials_for_many_experts() -> None:
    """Ten experts, three of which help: pairs find a good mixture in fewer trials than a quadratic's 66."""
    names = [f"e{i}" for i in range(10)]
    space: dict[str, BaseDistribution] = {f"weight[{name}]": FloatDistribution(0.0, 1.0) for name in names}
    wanted = np.array([0.8, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0, 0.7, 0.0, 0.0])
    study = optuna.create_study(
        direction="maximize", sampler=MAPSampler(seed=0, search_space=space, nested=True, refine=0)
    )
    for _ in range(58):
        trial = study.ask(space)
        weights = np.array([trial.params[f"weight[{name}]"] for name in names])
        study.tell(trial, -float(((weights - wanted) ** 2).sum()))
    matches = [trial for trial in study.trials if proposal_stage(trial) == "match"]
    assert len(matches) < 56 and proposal_stage(study.trials[-1]) != "match"
    assert max(trial.value for trial in matches) > -0.3  # no merge at all: -1.49, best expert alone: -0.89


def test_by_name_and_wrong_options() -> None:
    made: Any = make_sampler("map", seed=0, objectives=[Objective("a"), Objective("b")], options={"refine": 0})
    assert isinstance(made, MAPSampler)
    with pytest.raises(UserError, match="n_startup"):
        MAPSampler(n_startup=1)
    with pytest.raises(UserError, match="refine"):
        MAPSampler(refine=-1)
