"""Where MM-MO takes a quadratic trend by itself: a few weights that are added, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.recipes.space import MergeSpace

ADDED: Mapping[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": [0, 1]}}


def space_of(models: str, **more: Any) -> MergeSpace:
    return MergeSpace(list(models), base_model="base", **{**ADDED, **more})


def proposed(space: MergeSpace, **options: Any) -> list[dict[str, Any]]:
    """The first two proposals of a model, after four Sobol points."""
    distributions = space.distributions()
    sampler = MMMOSampler(
        seed=0, search_space=distributions, n_startup=4, ranges=[(0, 1)] * 2, **{"rule": space.merge_rule, **options}
    )
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
    for _ in range(6):
        trial = study.ask(distributions)
        first, *_, last = (float(value) for value in trial.params.values())
        study.tell(trial, [1 - (first - 0.8) ** 2 - 0.3 * last, 1 - (last - 0.7) ** 2 - 0.3 * first])
    return [trial.params for trial in study.trials[4:]]


@pytest.mark.parametrize("models", ["ab", "abcd"])
def test_up_to_four_weights_that_are_added_have_one(models: str) -> None:
    space = space_of(models)
    assert proposed(space) == proposed(space, trend="quadratic") != proposed(space, trend="none")


@pytest.mark.parametrize(
    ("space", "options"),
    [
        pytest.param(space_of("abcde"), {}, id="five weights"),
        pytest.param(space_of("abc", method="linear"), {}, id="weights that are divided by their sum"),
        pytest.param(space_of("ab", method="ties", parameters={"weight": [0, 1], "density": [0.1, 1]}), {}, id="ties"),
        pytest.param(space_of("ab", granularity="layers", layers=2), {}, id="weights of layers"),
        pytest.param(space_of("ab", parameters={"weight": [-1, 1]}), {}, id="weights that may be negative"),
        pytest.param(space_of("ab"), {"merge_features": False}, id="coefficients as they are"),
    ],
)
def test_nothing_else_has_one(space: MergeSpace, options: Mapping[str, Any]) -> None:
    """It was measured to lose there, or not measured at all."""
    assert proposed(space, **options) == proposed(space, trend="none", **options)
