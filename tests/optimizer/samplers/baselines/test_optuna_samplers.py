"""Optuna's samplers by name, and CMA-ES: repeatable across restarts, blind to what is no point of the space."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from mergefront.optimizer.errors import UserError
from mergefront.optimizer.samplers.baselines.optuna_samplers import OptunaSampler
from mergefront.optimizer.samplers.registry import SAMPLERS, make_sampler
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import ANCHOR, OUTSIDE_SPACE

SPACE: dict[str, BaseDistribution] = {f"weight[{name}]": FloatDistribution(0.0, 1.0) for name in "abc"}
QUICK = {
    "random": {},
    "sobol": {},
    "tpe": {"n_startup_trials": 3},
    "tpe-multivariate": {"n_startup_trials": 3},
    "nsga2": {"population_size": 3},
    "nsga3": {"population_size": 3},
}


def sampler(
    name: str, objectives: int, options: dict[str, Any], known_space: bool = True
) -> optuna.samplers.BaseSampler:
    named = [Objective(f"task {index}") for index in range(objectives)]
    return make_sampler(name, seed=0, search_space=SPACE if known_space else None, objectives=named, options=options)


def values(params: dict[str, Any], objectives: int) -> list[float]:
    x = np.array([params[name] for name in SPACE])
    return [float(-((x - 0.2 - 0.3 * index) ** 2).sum()) for index in range(objectives)]


def run(study: optuna.Study, trials: int) -> None:
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, values(trial.params, len(study.directions)))


def points(study: optuna.Study) -> list[tuple[float, ...]]:
    return [tuple(trial.params[name] for name in SPACE) for trial in study.trials]


@pytest.mark.parametrize("known_space", [True, False], ids=["space known", "space inferred"])
@pytest.mark.parametrize(("name", "options", "objectives"), [*((n, o, 2) for n, o in QUICK.items()), ("cma-es", {}, 1)])
def test_a_resumed_study_goes_on_instead_of_starting_over(
    name: str, options: dict[str, Any], objectives: int, known_space: bool
) -> None:
    """With a fixed seed, Optuna's own samplers propose the first points again after a restart."""

    def study_of(*parts: int) -> list[tuple[float, ...]]:
        study = optuna.create_study(directions=["maximize"] * objectives)
        for count in parts:
            study.sampler = sampler(name, objectives, options, known_space)
            run(study, count)
        return points(study)

    whole = study_of(12)
    assert study_of(5, 7) == whole
    assert whole[5:10] != whole[:5]
    # A genetic sampler may clone a parent.
    assert len(set(whole)) >= (9 if name.startswith("nsga") else 12)
    # Parameters drawn one by one must not repeat one number.
    assert all(len(set(point)) == 3 for point in whole)


def test_optunas_gp_sampler_repeats_too() -> None:
    def study_of(*parts: int) -> list[tuple[float, ...]]:
        study = optuna.create_study(directions=["maximize"] * 2)
        for count in parts:
            study.sampler = sampler("gp", 2, {"n_startup_trials": 3})
            run(study, count)
        return points(study)

    whole = study_of(5)
    assert study_of(4, 1) == whole
    assert len(set(whole)) == 5


class TestGP:
    """Its acquisition asks for gigabytes a hundred trials, and for hundreds of them from four objectives on."""

    def told(self, objectives: int, trials: int) -> optuna.Study:
        """A study all of whose trials are on the front."""
        study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler("gp", objectives, {}))
        for number in range(trials):
            params = dict(zip(SPACE, np.random.default_rng(number).random(3), strict=True))
            scores = [float(number), *[-float(number)] * (objectives - 1)]
            study.add_trial(create_trial(params=params, distributions=SPACE, values=scores))
        return study

    @pytest.mark.parametrize(("objectives", "trials", "most"), [(3, 64, 64), (3, 70, 64), (2, 170, 160)])
    def test_it_is_shown_no_more_trials_than_fit(
        self, objectives: int, trials: int, most: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen = []

        class Watching(RandomSampler):
            def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
                return dict(SPACE)

            def sample_relative(self, study: optuna.Study, trial: FrozenTrial, space: dict[str, Any]) -> dict[str, Any]:
                seen.extend(study.get_trials())
                return {}

        study = self.told(objectives, trials)
        study.sampler = OptunaSampler(
            lambda seed: Watching(seed), seed=0, search_space=SPACE, most_told=SAMPLERS["gp"].most_told
        )
        study.ask(SPACE)
        study.ask(SPACE)
        finished = [trial for trial in seen if trial.state == TrialState.COMPLETE]
        assert len(finished) == 2 * most
        assert [trial.number for trial in seen if trial.state == TrialState.RUNNING] == [trials, trials, trials + 1]
        assert len([record for record in caplog.records if "proposals are made from" in record.message]) == (
            trials > most
        )

    def test_a_study_of_more_objectives_can_be_read_but_asks_for_nothing(self) -> None:
        study = self.told(4, 12)
        assert len(study.best_trials) == 12
        with pytest.raises(UserError, match="'gp' does up to 3 objectives, but 4 are asked for"):
            study.ask(SPACE)


@pytest.mark.parametrize("name", ["tpe-multivariate", "nsga2"])
def test_trials_outside_the_space_are_not_learned_from(name: str) -> None:
    def last(outside_value: float) -> tuple[float, ...]:
        study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler(name, 2, QUICK[name]))
        study.add_trial(
            create_trial(
                params=dict.fromkeys(SPACE, 0.9),
                distributions=SPACE,
                values=[outside_value] * 2,
                user_attrs={OUTSIDE_SPACE: True, ANCHOR: "uniform average"},
            )
        )
        run(study, 9)
        return points(study)[-1]

    assert last(100.0) == last(-100.0)


def test_genetic_samplers_breed_from_the_anchors() -> None:
    """Optuna's NSGA-II ignores every trial that it did not propose itself."""
    anchors = [(0.21, 0.22, 0.23), (0.51, 0.52, 0.53), (0.31, 0.32, 0.33), (0.41, 0.42, 0.43)]

    def bred(make: optuna.samplers.BaseSampler) -> bool:
        study = optuna.create_study(directions=["maximize"] * 2, sampler=make)
        for number, anchor in enumerate(anchors):
            params = dict(zip(SPACE, anchor, strict=True))
            study.add_trial(
                create_trial(
                    params=params,
                    distributions=SPACE,
                    values=values(params, 2),
                    user_attrs={ANCHOR: str(number)},
                )
            )
        run(study, 3)
        inherited = {value for anchor in anchors for value in anchor}
        return any(value in inherited for point in points(study)[len(anchors) :] for value in point)

    assert bred(sampler("nsga2", 2, {"population_size": 4}))
    assert not bred(NSGAIISampler(seed=0, population_size=4))


class TestCmaEs:
    def test_it_finds_the_optimum_of_a_quadratic_from_the_best_anchor(self) -> None:
        study = optuna.create_study(direction="maximize", sampler=sampler("cma-es", 1, {}))
        for anchor in (0.0, 0.35, 1.0):
            params = dict.fromkeys(SPACE, anchor)
            study.add_trial(
                create_trial(
                    params=params, distributions=SPACE, values=values(params, 1), user_attrs={ANCHOR: str(anchor)}
                )
            )
        run(study, 120)
        np.testing.assert_allclose([study.best_params[name] for name in SPACE], 0.2, atol=0.03)
        first = np.array(points(study)[3:10])
        assert np.linalg.norm(first.mean(axis=0) - 0.35) < 0.25

    def test_nothing_in_the_database_needs_unpickling(self) -> None:
        study = optuna.create_study(direction="maximize", sampler=sampler("cma-es", 1, {}))
        run(study, 20)
        assert all(set(trial.system_attrs) == {"mergefront:proposal"} for trial in study.trials)

    def test_failures_are_skipped(self) -> None:
        study = optuna.create_study(direction="maximize", sampler=sampler("cma-es", 1, {"population_size": 4}))
        for number in range(60):
            trial = study.ask(SPACE)
            if number % 5 == 0:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, values(trial.params, 1))
        assert study.best_value > -0.02


@pytest.mark.parametrize(("name", "objectives"), [("tpe", 2), ("tpe-multivariate", 2), ("cma-es", 1)])
def test_failed_trials_teach(name: str, objectives: int) -> None:
    """Half of the space cannot be evaluated, and the scores rise towards it: all of the budget went there."""
    options = {"n_startup_trials": 5} if name != "cma-es" else {"population_size": 4}
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler(name, objectives, options))
    failed = []
    for _ in range(40):
        trial = study.ask(SPACE)
        failed.append(trial.params["weight[a]"] > 0.5)
        if failed[-1]:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, [trial.params["weight[a]"] + 0.1 * trial.params["weight[b]"]] * objectives)
    assert sum(failed[20:]) <= 10
