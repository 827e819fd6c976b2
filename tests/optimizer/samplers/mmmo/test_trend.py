"""Where MM-MO takes a quadratic trend by itself: a few weights that are added, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import pytest

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.recipes.merge_rule import UNKNOWN
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.options import Trend

ADDED: Mapping[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": [0, 1]}}


def space_of(models: str, **more: Any) -> MergeSpace:
    return MergeSpace(list(models), base_model="base", **{**ADDED, **more})


def searched(space: MergeSpace, trials: int, startup: int, **options: Any) -> optuna.Study:
    """A study of two objectives, its first ``startup`` trials Sobol points."""
    options = {"rule": space.merge_rule, "ranges": [(0, 1)] * 2, **options}
    sampler = MMMOSampler(seed=0, search_space=space.distributions(), n_startup=startup, **options)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
    for _ in range(trials):
        trial = study.ask(space.distributions())
        first, *_, last = (float(value) for value in trial.params.values())
        study.tell(trial, [1 - (first - 0.8) ** 2 - 0.3 * last, 1 - (last - 0.7) ** 2 - 0.3 * first])
    return study


def proposed(space: MergeSpace, **options: Any) -> list[dict[str, Any]]:
    """The first two proposals of a model, after four Sobol points."""
    return [trial.params for trial in searched(space, 6, 4, **options).trials[4:]]


@pytest.mark.parametrize("models", ["ab", "abcd"])
def test_up_to_four_weights_that_are_added_have_one(models: str) -> None:
    space = space_of(models)
    assert proposed(space) == proposed(space, trend="quadratic") != proposed(space, trend="none")


def test_from_the_sixteenth_trial_on_every_other_one_is_without() -> None:
    """What a wrong trend leaves out would be left out for good."""
    space = space_of("ab")

    def last(trials: int, trend: Trend) -> dict[str, Any]:
        return searched(space, trials, trials - 1, trend=trend).trials[-1].params

    own: Trend
    for trials, own in ((16, "quadratic"), (17, "quadratic"), (18, "none"), (19, "quadratic")):
        other: Trend = "none" if own == "quadratic" else "quadratic"
        assert last(trials, "auto") == last(trials, own) != last(trials, other)


def test_two_workers_get_what_two_processes_would_get() -> None:
    """The second one's model is another one of the same trials."""
    space = space_of("ab")

    def second(in_another_process: bool) -> dict[str, Any]:
        study = searched(space, 16, 15)
        study.ask(space.distributions())
        if in_another_process:
            study.sampler = searched(space, 0, 15).sampler
        return study.ask(space.distributions()).params

    assert second(in_another_process=False) == second(in_another_process=True)


@pytest.mark.cases(3)
@pytest.mark.parametrize(
    ("space", "options"),
    [
        pytest.param(space_of("abcde"), {}, id="five weights"),
        pytest.param(space_of("abc", method="linear"), {}, id="weights that are divided by their sum"),
        pytest.param(space_of("ab", method="ties", parameters={"weight": [0, 1], "density": [0.1, 1]}), {}, id="ties"),
        pytest.param(space_of("ab", granularity="layers", layers=2), {}, id="weights of layers"),
        pytest.param(space_of("ab", parameters={"weight": [-1, 1]}), {}, id="weights that may be negative"),
        pytest.param(space_of("ab"), {"rule": UNKNOWN}, id="arithmetic that is not known"),
        pytest.param(space_of("ab"), {"merge_features": False}, id="coefficients as they are"),
    ],
)
def test_nothing_else_has_one(space: MergeSpace, options: Mapping[str, Any]) -> None:
    """It was measured to lose there, or not measured at all."""
    assert proposed(space, **options) == proposed(space, trend="none", **options)
