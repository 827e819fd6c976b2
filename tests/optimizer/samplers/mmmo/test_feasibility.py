"""Constraints in a search: what is proposed has to be worth having and has to be allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState
from scipy.optimize import approx_fprime
from scipy.stats import norm

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.samplers.gaussian_process.fit import fit_surrogate
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement
from mergefront.optimizer.samplers.mmmo.feasibility import (
    FeasibilityWeighted,
    Violations,
    fit_violations,
    log_probability,
)
from mergefront.optimizer.search.attributes import ANCHOR, proposal_stage

SPACE: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in ("x", "y")}


def told(seed: int, count: int = 12, size: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.random((count, 2))
    return x, size * (x[:, 0] - 0.5 + 0.1 * np.sin(7 * x[:, 1]))


@pytest.mark.parametrize("size", [1.0, 1e12, 1e-12])
def test_the_boundary_is_found_in_any_unit(size: float) -> None:
    x, values = told(0, 20, size)
    process = fit_violations(Violations(x, values, np.full(20, np.nan)))
    probability = np.exp(log_probability([process], np.array([[0.1, 0.2], [0.9, 0.2]])))
    assert probability[0] > 0.9 and probability[1] < 0.1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.floats(0.02, 0.98), min_size=2, max_size=2))
def test_the_gradient_is_that_of_the_value(seed: int, point: list[float]) -> None:
    x, values = told(seed)
    rng = np.random.default_rng(seed)
    processes = [fit_violations(Violations(x, v, np.full(12, np.nan))) for v in (values, values - rng.random(12))]
    surrogate = fit_surrogate(x, rng.random((12, 2)), np.full((12, 2), np.nan))
    base = HypervolumeImprovement(
        surrogate, np.zeros((0, 2)), np.full(2, -0.1), np.zeros((0, 2)), rng.standard_normal((4, 12, 2))
    )
    for acquisition in (FeasibilityWeighted(processes, base), FeasibilityWeighted(processes, None)):
        at = np.array(point)
        value, gradient = acquisition.value_and_gradient(at)
        assert value == pytest.approx(acquisition.values(at[None, :])[0], rel=1e-9, abs=1e-9)
        numeric = approx_fprime(at, lambda p, a=acquisition: float(a.values(p[None, :])[0]), 1e-6)
        np.testing.assert_allclose(gradient, numeric, rtol=2e-3, atol=2e-3 * (1 + np.abs(numeric).max()))


def test_the_weight_is_the_normal_probability_of_the_posterior() -> None:
    x, values = told(3)
    process = fit_violations(Violations(x, values, np.full(12, np.nan)))
    points = np.random.default_rng(0).random((5, 2))
    mean, variance = process.posterior(points)
    expected = norm.logcdf(0.0, loc=mean, scale=np.sqrt(variance))
    np.testing.assert_allclose(log_probability([process], points), expected, rtol=1e-6)


def run(trials: int = 24, bound: float = 0.6, start: int = 6, **options: Any) -> optuna.Study:
    """Two objectives that both want large coordinates, whose sum may not be above ``bound``."""
    sampler = MMMOSampler(seed=0, search_space=SPACE, n_startup=start, **options)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for _ in range(trials):
        trial = study.ask(SPACE)
        x, y = trial.params["x"], trial.params["y"]
        trial.set_constraint("sum", x + y - bound)
        study.tell(trial, [x, y])
    return study


def is_allowed(trial: optuna.trial.FrozenTrial) -> bool:
    return trial.constraints["sum"] <= 0.0


class TestSearch:
    @pytest.mark.cases(1)
    @pytest.mark.parametrize("options", [{}, {"variant": "paper"}, {"trend": "quadratic"}])
    def test_proposals_keep_to_the_boundary(self, options: dict[str, str]) -> None:
        study = run(trials=20, **options)
        modelled = [trial for trial in study.trials if proposal_stage(trial) == "model"]
        # Without the constraint every one of them would lie in the corner (1, 1); a fifth of the space is allowed.
        share = np.mean([is_allowed(trial) for trial in modelled])
        assert share >= (0.3 if "variant" in options else 0.5)
        best = max(sum(trial.values) for trial in study.trials if is_allowed(trial))
        assert best > 0.5

    def test_botorchs_engine_keeps_to_it_too(self) -> None:
        study = run(trials=9, budget="botorch")
        modelled = [trial for trial in study.trials if proposal_stage(trial) == "model"]
        assert any(is_allowed(trial) for trial in modelled)

    def test_a_start_without_anything_allowed_finds_what_is(self) -> None:
        """A hundredth of the space is allowed, and the initial design misses it."""
        study = run(trials=14, bound=0.14, start=4)
        assert not any(is_allowed(trial) for trial in study.trials[:4])
        assert any(is_allowed(trial) for trial in study.trials)

    def test_a_trial_that_is_not_allowed_does_not_shrink_what_can_be_improved(self) -> None:
        def last(values: float) -> dict[str, Any]:
            """An anchor far beyond the bound, with scores above or below everything."""
            study = optuna.create_study(
                directions=["maximize", "maximize"],
                sampler=MMMOSampler(seed=0, search_space=SPACE, n_startup=4, ranges=[(0.0, 1.0)] * 2),
            )
            study.add_trial(
                optuna.trial.create_trial(
                    params={"x": 1.0, "y": 1.0}, distributions=SPACE, values=[values] * 2,
                    user_attrs={ANCHOR: "base", "mergefront:outside_space": True},
                    system_attrs={"constraints": [1.0]},
                )
            )  # fmt: skip
            for _ in range(6):
                trial = study.ask(SPACE)
                x, y = trial.params["x"], trial.params["y"]
                study._storage.set_trial_system_attr(trial._trial_id, "constraints", [x + y - 0.6])
                study.tell(trial, [x, y])
            return study.trials[-1].params

        assert last(10.0) == last(-10.0)

    def test_asking_again_in_a_new_sampler_gives_the_same(self) -> None:
        study = run(trials=9)
        again = optuna.create_study(directions=["maximize", "maximize"])
        again.add_trials(study.trials[:8])
        again.sampler = MMMOSampler(seed=0, search_space=SPACE, n_startup=6)
        assert again.ask(SPACE).params == study.trials[8].params

    def test_a_constraint_that_is_never_satisfied_or_infinite_does_no_harm(self) -> None:
        study = optuna.create_study(direction="maximize", sampler=MMMOSampler(seed=0, search_space=SPACE, n_startup=3))
        for number in range(8):
            trial = study.ask(SPACE)
            trial.set_constraint("never", 1e12 if number % 2 else float("inf"))
            if number > 4:
                trial.set_constraint("late", 0.0)
            study.tell(trial, trial.params["x"])
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 8
        assert proposal_stage(study.trials[-1]) == "model"


@pytest.mark.cases(1)
@pytest.mark.parametrize("how", ["fail", "pruned", "infinite"])
def test_what_cannot_be_evaluated_is_learnt_like_a_constraint(how: str) -> None:
    """Merges that give NaN, or that a server refuses, lie where the scores rise, and each costs an evaluation."""
    sampler = MMMOSampler(seed=0, search_space=SPACE, n_startup=6)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    broken = []
    for _ in range(24):
        trial = study.ask(SPACE)
        x, y = trial.params["x"], trial.params["y"]
        broken.append(x + y > 1.3)
        if not broken[-1]:
            study.tell(trial, (x + 0.3 * y, y + 0.3 * x))
        elif how == "infinite":
            study.tell(trial, (float("-inf"), y))
        else:
            study.tell(trial, state=TrialState.FAIL if how == "fail" else TrialState.PRUNED)
    assert sum(broken[12:]) <= 6
    best = max(
        trial.values[0] + trial.values[1] for trial in study.trials if np.isfinite(trial.values or [np.inf]).all()
    )
    assert best > 1.3 * 1.22, "the edge, where the best points lie, was given up too"
