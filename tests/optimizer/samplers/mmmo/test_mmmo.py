"""What a user of MMMOSampler relies on: it improves, repeats, resumes, and does not fall over."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState, create_trial

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.unit_cube import Encoder
from mergefront.optimizer.samplers.common.units import normalise, normaliser_for
from mergefront.optimizer.samplers.mmmo.merge_features import MergeFeatures
from mergefront.optimizer.samplers.mmmo.optimize_acqf import BUDGETS
from mergefront.optimizer.samplers.mmmo.proposals import Observations, acquisition_of, fit
from mergefront.optimizer.scores.pareto import hypervolume
from mergefront.optimizer.search.attributes import (
    ANCHOR,
    OUTSIDE_SPACE,
    STANDARD_ERRORS,
    proposal_stage,
    write_search_space,
)

SPACE: dict[str, BaseDistribution] = {f"weight[{name}]": FloatDistribution(0.0, 1.0) for name in "abcd"}
CENTRES = np.array([[0.9, 0.1, 0.3, 0.7], [0.2, 0.8, 0.6, 0.3]])
CURVATURES = np.array([[5.0, 3.0, 1.0, 2.0], [2.0, 5.0, 3.0, 1.0]])


def merge_like(x: np.ndarray) -> list[float]:
    """Two accuracies in 0..1, and the size of the change in parameters' units."""
    scores = np.exp(-(CURVATURES * (x - CENTRES) ** 2).sum(axis=1))
    return [*scores.tolist(), float(x.sum() * 1e5)]


def vector(params: dict[str, Any]) -> np.ndarray:
    return np.array([params[name] for name in SPACE])


def merge_like_study(sampler: BaseSampler, **kwargs: Any) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "maximize", "minimize"], sampler=sampler, **kwargs)


def step(study: optuna.Study) -> dict[str, Any]:
    trial = study.ask(SPACE)
    study.tell(trial, merge_like(vector(trial.params)))
    return trial.params


def add_anchors(study: optuna.Study) -> None:
    for name, point in {"base": np.zeros(len(SPACE)), "expert a": CENTRES[0], "expert b": CENTRES[1]}.items():
        study.add_trial(
            create_trial(
                params=dict(zip(SPACE, point.tolist(), strict=True)),
                distributions=SPACE,
                values=merge_like(point),
                user_attrs={ANCHOR: name},
            )
        )


class TestOneUnitSystem:
    """The released program compared raw reference points with z-scored values, and its acquisition was 0 everywhere."""

    def test_the_acquisition_is_finite_and_tells_points_apart(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.random((9, len(SPACE)))
        raw = np.array([merge_like(point) for point in x])
        y = normalise(normaliser_for([True, True, False], raw), raw)
        none = np.zeros((0, len(SPACE)))
        data = Observations(
            encoder=Encoder(SPACE), features=MergeFeatures(Encoder(SPACE)), x=x, y=y,
            noise_variance=np.full(y.shape, np.nan), outside=np.zeros((0, 3)),
            pending=none, taken=none, reference=np.full(3, -0.1),
        )  # fmt: skip
        values = acquisition_of(data, fit(data), BUDGETS["fast"], rng).values(rng.random((200, len(SPACE))))
        assert np.isfinite(values).all()
        assert np.exp(values).max() > 1e-3
        assert np.ptp(values) > 2.0

    def test_proposals_do_not_depend_on_the_units_of_the_objectives(self) -> None:
        def proposals(scales: Sequence[float]) -> list[dict[str, Any]]:
            study = merge_like_study(MMMOSampler(seed=1, search_space=SPACE, n_startup=4))
            for _ in range(8):
                trial = study.ask(SPACE)
                values = np.array(merge_like(vector(trial.params))) * scales
                study.tell(trial, values.tolist())
            return [trial.params for trial in study.trials]

        # Powers of two, so that not even rounding differs.
        assert proposals([1.0, 1.0, 1.0]) == proposals([2.0**40, 2.0**-30, 2.0**-17])

    def test_a_reference_point_in_the_objectives_own_units_shifts_the_search(self) -> None:
        def last(reference: Sequence[float] | None) -> dict[str, Any]:
            study = merge_like_study(MMMOSampler(seed=1, search_space=SPACE, n_startup=5, reference_point=reference))
            add_anchors(study)
            for _ in range(6):
                params = step(study)
            return params

        # Only changes below 1.2e5 are of interest: the sum of the weights has to stay below 1.2.
        assert vector(last([0.0, 0.0, 1.2e5])).sum() < 1.2
        assert last([0.0, 0.0, 1.2e5]) != last(None)


def continued(url: str, options: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """All trials of a stored study after ``count`` more of them."""
    study = optuna.create_study(
        study_name="s",
        storage=url,
        directions=["maximize", "maximize", "minimize"],
        sampler=MMMOSampler(seed=5, n_startup=5, batch=3, **options),
        load_if_exists=True,
    )
    for _ in range(count):
        step(study)
    return [trial.params for trial in study.trials]


@pytest.mark.long
def test_hypervolume_grows_where_random_search_stalls() -> None:
    def volumes(make: Callable[[int], BaseSampler], seed: int) -> tuple[float, float]:
        study = merge_like_study(make(seed))
        add_anchors(study)
        for _ in range(17):
            step(study)
        values = [[trial.values[0], trial.values[1], -trial.values[2] / 1e5] for trial in study.trials]
        early, late = (hypervolume(values[:count], [0.0, 0.0, -2.2]) for count in (10, 20))
        return early, late

    def mm_mo(seed: int) -> BaseSampler:
        return MMMOSampler(seed=seed, search_space=SPACE)

    def at_random(seed: int) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)

    for seed in range(3):
        early, late = volumes(mm_mo, seed)
        _, random_late = volumes(at_random, seed)
        assert late > early * 1.3
        assert late > random_late * 1.1


class TestRepeatability:
    def test_the_same_seed_gives_the_same_study_and_another_seed_another(self) -> None:
        def run(seed: int) -> list[dict[str, Any]]:
            study = merge_like_study(MMMOSampler(seed=seed, n_startup=3))
            return [step(study) for _ in range(7)]

        assert run(0) == run(0)
        assert run(0) != run(1)

    @pytest.mark.cases(1)
    @pytest.mark.parametrize("options", [{}, {"variant": "paper"}, {"trend": "quadratic"}])
    def test_a_new_process_continues_as_the_old_one_would_have(self, options: dict[str, str], tmp_path: Path) -> None:
        program = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_mmmo import continued
print(json.dumps(continued(sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]))))
"""

        def url(name: str) -> str:
            return f"sqlite:///{tmp_path / name}"

        # Broken off inside a round.
        continued(url("resumed.db"), options, 7)
        arguments = [str(Path(__file__).parent), url("resumed.db"), json.dumps(options), "2"]
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == continued(url("whole.db"), options, 9)

    def test_a_trial_taken_over_from_a_dead_process_keeps_its_proposal(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=3))
        for _ in range(4):
            step(study)
        abandoned = study.ask()
        params = {name: abandoned.suggest_float(name, 0.0, 1.0) for name in list(SPACE)[:2]}
        step(study)  # another process went on meanwhile
        taken_over = optuna.trial.Trial(study, abandoned._trial_id)
        again = {name: taken_over.suggest_float(name, 0.0, 1.0) for name in SPACE}
        assert {name: again[name] for name in params} == params
        assert again == json.loads(json.dumps(study.trials[4].system_attrs["mergefront:proposal"]["params"]))

    @pytest.mark.long
    @pytest.mark.parametrize("variant", ["default", "paper"])
    def test_the_order_in_which_a_round_finishes_changes_nothing(self, variant: Any) -> None:
        def run(order: Sequence[int], asked_before_told: int) -> list[dict[str, Any]]:
            study = merge_like_study(MMMOSampler(seed=2, variant=variant, search_space=SPACE, n_startup=4, batch=3))
            for _ in range(4):
                step(study)
            for _ in range(2):
                trials = [study.ask(SPACE) for _ in range(asked_before_told)]
                waiting = {index: trials[index] for index in range(asked_before_told)}
                for index in order:
                    if index not in waiting:
                        waiting[index] = study.ask(SPACE)
                    study.tell(waiting[index], merge_like(vector(waiting[index].params)))
            return [trial.params for trial in study.trials]

        one_by_one = run([0, 1, 2], 0)
        assert run([2, 0, 1], 3) == one_by_one
        assert run([1, 0, 2], 2) == one_by_one

    def test_global_random_state_is_left_alone(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=2))
        np.random.seed(0)
        random.seed(0)
        expected = np.random.random(), random.random()
        np.random.seed(0)
        random.seed(0)
        for _ in range(4):
            step(study)
        assert (np.random.random(), random.random()) == expected

    def test_proposing_needs_no_deep_learning_library(self) -> None:
        """An ask on a machine without an accelerator must not wait for seconds of imports and compilation."""
        program = """
import sys
sys.path.insert(0, sys.argv[1])
import optuna
from mergefront.optimizer import MMMOSampler
study = optuna.create_study(directions=["maximize"] * 2, sampler=MMMOSampler(seed=0, n_startup=2))
study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), n_trials=5)
assert study.trials[-1].system_attrs["mergefront:proposal"]["stage"] == "model"
assert "torch" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", program, str(Path(__file__).parent)], check=True, capture_output=True)


class TestPending:
    def test_running_trials_are_not_proposed_again(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=4))
        add_anchors(study)
        for _ in range(4):
            step(study)
        points = np.array([vector(study.ask(SPACE).params) for _ in range(4)])
        distances = np.linalg.norm(points[:, None] - points[None, :], axis=2)[np.triu_indices(4, 1)]
        assert distances.min() > 0.05

    def test_half_a_running_point_is_seen_whole(self) -> None:
        """Optuna commits parameters one by one; other workers must not miss the point meanwhile."""
        sampler = MMMOSampler(seed=0, search_space=SPACE, n_startup=3)

        def next_after(suggested: int) -> dict[str, Any]:
            study = merge_like_study(sampler)
            for _ in range(4):
                step(study)
            other = study.ask()
            for name in list(SPACE)[:suggested]:
                other.suggest_float(name, 0.0, 1.0)
            return study.ask(SPACE).params

        assert next_after(1) == next_after(len(SPACE))


class TestInitialDesign:
    def test_given_anchors_come_first_then_distinct_sobol_points(self) -> None:
        anchors = [dict.fromkeys(SPACE, 0.0), dict.fromkeys(SPACE, 1.0 / 3.0)]
        study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, anchors=anchors, n_startup=3))
        params = [step(study) for _ in range(6)]
        assert params[0] == anchors[0]
        assert list(params[1].values()) == pytest.approx([1.0 / 3.0] * len(SPACE))
        stages = [proposal_stage(trial) for trial in study.trials]
        assert stages == ["anchor", "anchor", "sobol", "sobol", "sobol", "model"]

    def test_flagged_anchors_do_not_use_up_the_initial_design(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=2))
        add_anchors(study)
        for _ in range(3):
            step(study)
        assert [proposal_stage(trial) for trial in study.trials[3:]] == ["sobol", "sobol", "model"]

    def test_the_space_stored_with_the_study_is_known_from_the_first_trial(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0))
        write_search_space(study, SPACE)
        step(study)
        assert proposal_stage(study.trials[0]) == "sobol"


class TestWhatTrainsTheModel:
    def test_trials_outside_the_space_never_train_it_but_count_in_the_front(self) -> None:
        def proposals(flagged: bool, values: list[float]) -> list[dict[str, Any]]:
            study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=3))
            add_anchors(study)
            attributes = {OUTSIDE_SPACE: True} if flagged else {}
            study.add_trial(
                create_trial(params=dict.fromkeys(SPACE, 0.5), distributions=SPACE, values=values,
                             user_attrs={ANCHOR: "uniform average", **attributes})
            )  # fmt: skip
            return [step(study) for _ in range(5)]

        # Inside the range of the anchors and dominated: as an outside trial it changes nothing at all.
        dominated = [0.008, 0.013, 2.0e5]
        other = [0.009, 0.02, 1.95e5]
        assert proposals(True, dominated) == proposals(True, other)
        assert proposals(False, dominated) != proposals(False, other)
        # Beyond what any merge reaches in accuracy: nothing below it is an improvement any more.
        assert proposals(True, [0.99, 0.99, 1e4]) != proposals(True, dominated)

    def test_standard_errors_change_what_is_believed(self) -> None:
        def last(error: float | None) -> dict[str, Any]:
            study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=4))
            add_anchors(study)
            for _ in range(7):
                trial = study.ask(SPACE)
                trial.set_user_attr(STANDARD_ERRORS, [error, error, None])
                study.tell(trial, merge_like(vector(trial.params)))
            return study.trials[-1].params

        assert last(0.2) != last(None)

    def test_points_that_failed_are_not_proposed_again(self) -> None:
        space = {"k": IntDistribution(0, 3), "method": CategoricalDistribution(("ties", "linear"))}
        study = optuna.create_study(direction="maximize", sampler=MMMOSampler(seed=0, search_space=space, n_startup=2))
        seen = []
        for number in range(8):
            trial = study.ask(space)
            seen.append(tuple(trial.params.values()))
            if number % 2:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, float(trial.params["k"]))
        assert len(set(seen)) == 8
        # Everything has been tried: a proposal all the same.
        assert study.ask(space).params["k"] in range(4)


DISCRETE_AND_LOG: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "step": FloatDistribution(0.0, 1.0, step=0.25),
    "count": IntDistribution(1, 64, log=True),
    "method": CategoricalDistribution(("ties", "dare_ties", "linear")),
}


class TestEdgeCases:
    @pytest.mark.cases(5)
    @pytest.mark.parametrize("options", [{}, {"variant": "paper"}, {"trend": "quadratic"}])
    @pytest.mark.parametrize(
        "values",
        [
            lambda n, x: [1.0, 1.0],
            lambda n, x: [0.0, x],
            lambda n, x: [1e12 * x, 1e12],
            lambda n, x: [1e-12 * x, 1e-12 * (1 - x)],
            lambda n, x: [1e12 if n == 3 else x, x],
            lambda n, x: [-1e12 if n % 3 == 1 else x, 1 - x],
            lambda n, x: [float("inf") if n == 2 else x, 1 - x],
            lambda n, x: [float("nan") if n != 4 else x, 1 - x],
            lambda n, x: None,
        ],
        ids=["constant", "half", "huge", "tiny", "jackpot", "collapses", "infinite", "one finished", "all failed"],
    )
    def test_strange_values_give_sensible_proposals(self, values: Any, options: dict[str, Any]) -> None:
        space = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
        sampler = MMMOSampler(seed=0, search_space=space, n_startup=3, batch=2, **options)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for number in range(9):
            trial = study.ask(space)
            told = values(number, trial.params["x"])
            if told is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, told, skip_if_finished=True) if np.isfinite(told).all() else study.tell(
                    trial, told if not np.isnan(told).any() else None, state=None
                )
        points = [tuple(trial.params.values()) for trial in study.trials]
        assert len(set(points)) == 9
        assert all(0.0 <= value <= 1.0 and type(value) is float for point in points for value in point)

    @pytest.mark.parametrize("objectives", [1, 2, 4, 6])
    def test_any_number_of_objectives_and_kind_of_parameter(self, objectives: int) -> None:
        sampler = MMMOSampler(seed=0, search_space=DISCRETE_AND_LOG, n_startup=4)
        study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
        rng = np.random.default_rng(0)
        for _ in range(8):
            trial = study.ask(DISCRETE_AND_LOG)
            study.tell(trial, rng.random(objectives).tolist())
        assert proposal_stage(study.trials[-1]) == "model"

    def test_the_best_category_and_level_are_found(self) -> None:
        study = optuna.create_study(
            direction="maximize", sampler=MMMOSampler(seed=0, search_space=DISCRETE_AND_LOG, n_startup=6)
        )
        for _ in range(22):
            trial = study.ask(DISCRETE_AND_LOG)
            params = trial.params
            distance = abs(params["step"] - 0.75) + 0.1 * abs(np.log(params["count"] / 16))
            study.tell(trial, (params["method"] == "dare_ties") - distance)
        assert study.best_params["method"] == "dare_ties"
        assert study.best_params["step"] == 0.75
        assert 10 <= study.best_params["count"] <= 24

    def test_duplicated_points_with_different_values_are_noise(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0, search_space=SPACE, n_startup=0))
        for value in (0.1, 0.2, 0.3, 0.4):
            study.add_trial(
                create_trial(params=dict.fromkeys(SPACE, 0.5), distributions=SPACE, values=[value, 1 - value, 1e5])
            )
        step(study)
        step(study)
        assert proposal_stage(study.trials[-1]) == "model"


class TestPaperVariant:
    def test_a_round_is_ten_candidates_crossed_with_elites_of_which_five_are_evaluated(self) -> None:
        study = merge_like_study(MMMOSampler(seed=0, variant="paper", search_space=SPACE, task_objectives=[0, 1]))
        for _ in range(15):
            step(study)
        stages = [proposal_stage(trial) for trial in study.trials]
        assert stages == ["sobol"] * 10 + ["model"] * 5
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 15

    def test_the_fisher_screen_decides_which_candidates_are_evaluated(self) -> None:
        def round_of(rule: Any) -> set[tuple[float, ...]]:
            study = merge_like_study(MMMOSampler(seed=0, variant="paper", search_space=SPACE, fisher_screen=rule))
            params = [step(study) for _ in range(15)]
            return {tuple(point.values()) for point in params[10:]}

        low, high = round_of("low"), round_of("high")
        # Ten candidates, the five least known and the five best known: complementary.
        assert not low & high
        assert round_of("off") <= low | high


def test_wrong_arguments_are_named_with_their_value() -> None:
    with pytest.raises(UserError, match="variant is 'papr'; it must be default or paper"):
        MMMOSampler(variant="papr")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batch is 0; it must be a whole number of at least 1"):
        MMMOSampler(batch=0)


@pytest.mark.parametrize("other", [{"variant": "paper"}, {"budget": "botorch"}])
def test_a_trend_that_no_model_would_have_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="have no trend; leave one of the two out"):
        MMMOSampler(trend="quadratic", **other)
    study = merge_like_study(MMMOSampler(search_space=SPACE, reference_point=[0.0]))
    with pytest.raises(UserError, match="reference_point has 1 entries, but the study has 3 objectives"):
        study.ask(SPACE)
