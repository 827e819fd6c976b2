"""Samplers in plain Optuna studies, where nobody declares the space: it changes, threads share it, scores are odd."""

from __future__ import annotations

import logging
import math
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import Trial

from mergefront.optimizer import MAPSampler, MMMOSampler
from mergefront.optimizer.recipes.unit_cube import Condition, Encoder
from mergefront.optimizer.samplers.base import ReplayableSampler
from mergefront.optimizer.samplers.registry import make_sampler
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import STANDARD_ERRORS


def study_by(sampler: ReplayableSampler, objectives: int = 1) -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)


def hill(low: float, high: float) -> Callable[[Trial], float]:
    """Its top is at (1.3, 0.3)."""
    return lambda t: -((t.suggest_float("x", low, high) - 1.3) ** 2) - (t.suggest_float("y", 0.0, 1.0) - 0.3) ** 2


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_range_that_is_widened_keeps_its_trials(caplog: pytest.LogCaptureFixture) -> None:
    """The parameter whose best value lay just beyond its bound was drawn at random from then on, in silence."""
    study = study_by(MMMOSampler(seed=0))
    study.optimize(hill(0.0, 1.0), n_trials=12)
    study.optimize(hill(0.0, 2.0), n_trials=12)
    assert all(abs(trial.params["x"] - 1.3) < 0.15 for trial in study.trials[-4:])
    assert not warnings_in(caplog)


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.0, 0.5)])
def test_a_range_that_does_not_contain_the_old_one_is_said_once(
    low: float, high: float, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_by(MMMOSampler(seed=0))
    study.optimize(hill(0.0, 1.0), n_trials=6)
    study.optimize(hill(low, high), n_trials=6)
    said = warnings_in(caplog)
    assert len(said) == 1 and "parameter 'x' is drawn at random" in said[0] and f"high={high}" in said[0]


@pytest.mark.cases(1)
@pytest.mark.parametrize("make", [MMMOSampler, MAPSampler])
@pytest.mark.parametrize("step", [None, 0.1])
def test_threads_never_propose_one_point_twice(make: Callable[..., ReplayableSampler], step: float | None) -> None:
    """Threads that propose at once would all climb the same hill and pay for one point several times."""
    study = study_by(make(seed=0), 2)

    def score(trial: Trial) -> Sequence[float]:
        x, y, z = (trial.suggest_float(name, 0.0, 1.0, step=step) for name in "xyz")
        time.sleep(0.002)
        return x + y - z, y + z - x

    study.optimize(score, n_trials=28, n_jobs=4)
    points = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(set(points)) == len(points) == 28


def test_a_trial_that_proposes_after_a_later_one_leaves_it_its_point() -> None:
    study = study_by(MMMOSampler(seed=0))
    study.optimize(hill(0.0, 2.0), n_trials=8)
    first, second = study.ask(), study.ask()
    later = [second.suggest_float("x", 0.0, 2.0), second.suggest_float("y", 0.0, 1.0)]
    assert [first.suggest_float("x", 0.0, 2.0), first.suggest_float("y", 0.0, 1.0)] != later


def test_a_sampler_can_be_pickled() -> None:
    """Optuna's users keep samplers beside their studies."""
    study = study_by(MMMOSampler(seed=0))
    study.optimize(hill(0.0, 2.0), n_trials=6)
    copied = optuna.create_study(direction="maximize", sampler=pickle.loads(pickle.dumps(study.sampler)))
    copied.add_trials(study.trials)
    study.optimize(hill(0.0, 2.0), n_trials=2)
    copied.optimize(hill(0.0, 2.0), n_trials=2)
    assert [trial.params for trial in copied.trials] == [trial.params for trial in study.trials]


OURS: dict[str, dict[str, Any]] = {
    "mm-mo": {},
    "map": {},
    "evo-merging": {},
    "cma-es": {"population_size": 4},
    "tpe": {},
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("odd", [-math.inf, math.inf, 1e308, -1e308])
def test_any_score_that_optuna_takes_is_lived_with(name: str, odd: float) -> None:
    study = study_by(make_sampler(name, seed=0, objectives=[Objective("score")], options=OURS[name]))
    turn = iter(range(100))
    top = hill(0.0, 2.0)
    study.optimize(lambda trial: odd if next(turn) % 3 == 1 else top(trial), n_trials=12)
    assert len(study.trials) == 12


@pytest.mark.cases(2)
@pytest.mark.parametrize("error", [-0.1, math.nan, math.inf, 1e308, "0.1", None])
def test_a_standard_error_that_can_be_none_is_an_unknown_one(error: Any) -> None:
    """A negative variance made the matrix of the model singular, and all that follows random."""

    def run(written: Any) -> list[dict[str, Any]]:
        study = study_by(MMMOSampler(seed=0))

        def score(trial: Trial) -> float:
            trial.set_user_attr(STANDARD_ERRORS, [written])
            return hill(0.0, 2.0)(trial)

        study.optimize(score, n_trials=9)
        return [trial.params for trial in study.trials]

    assert run(error) == run(None)


def branches(trial: Trial) -> float:
    """Three branches with parameters of their own; the best is 1."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    top, wanted = {"a": (0.8, [0.3, 0.6]), "b": (1.0, [0.7, 0.2, 0.5]), "c": (0.7, [0.4])}[str(kind)]
    own = [trial.suggest_float(f"{kind}{index}", 0.0, 1.0) for index in range(len(wanted))]
    common = trial.suggest_float("common", 0.0, 1.0)
    return top - 2 * sum((x - y) ** 2 for x, y in zip(own, wanted, strict=True)) - (common - 0.35) ** 2


def layers(trial: Trial) -> float:
    """As many parameters as a number says; the best is 1."""
    count = trial.suggest_int("layers", 1, 4)
    weights = [trial.suggest_float(f"weight {index}", 0.0, 1.0) for index in range(count)]
    off = sum((weight - best) ** 2 for weight, best in zip(weights, [0.2, 0.8, 0.4, 0.6], strict=False))
    return 1.0 - 0.15 * abs(count - 3) - off - (trial.suggest_float("rate", 0.0, 1.0) - 0.6) ** 2


@pytest.mark.cases(1)
@pytest.mark.parametrize("score", [branches, layers])
def test_conditional_parameters_are_modelled(score: Callable[[Trial], float], caplog: pytest.LogCaptureFixture) -> None:
    """They were drawn at random for the whole of a study: no better than no sampler at all."""
    study = study_by(MMMOSampler(seed=0))
    study.optimize(score, n_trials=30)
    assert study.best_value > 0.95
    assert not warnings_in(caplog)


def test_a_condition_that_is_not_seen_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Optuna's samplers say so too: what depends on a continuous number is drawn at random."""
    study = study_by(MMMOSampler(seed=0))

    def score(trial: Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        return x + (trial.suggest_float("y", 0.0, 1.0) if x > 0.5 else 0.0)

    study.optimize(score, n_trials=16)
    (said,) = warnings_in(caplog)
    assert "parameter 'y' is drawn at random" in said and "not every finished trial has it" in said


def test_a_parameter_without_effect_makes_no_other_point() -> None:
    """Two points that differ in the parameters of another branch are one evaluation."""
    space: dict[str, BaseDistribution] = {
        "kind": CategoricalDistribution(["a", "b"]),
        "sub": CategoricalDistribution([1, 2]),
        "x": FloatDistribution(0.0, 1.0),
    }
    conditions = {"sub": Condition("kind", frozenset({"b"})), "x": Condition("sub", frozenset({2}))}
    encoder = Encoder(space, conditions)
    assert encoder.contains({"kind": "a"}) and encoder.contains({"kind": "b", "sub": 1})
    assert not encoder.contains({"kind": "b"}) and not encoder.contains({"kind": "b", "sub": 2})
    points = np.stack(
        [encoder.encode({"kind": kind, "sub": sub, "x": 0.7}) for kind, sub in (("a", 1), ("a", 2), ("b", 1), ("b", 2))]
    )
    assert [row[2:].tolist() for row in encoder.masked(points)] == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0.7]]
