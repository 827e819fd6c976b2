"""What a search over a pool of LoRAs promises: the same proposals whatever happened to the process, no trust in
failures, and a minimum found in few evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import TrialState

from mergefront.optimizer import EvoMergingSampler
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.samplers.common.evolution import Evolution
from mergefront.optimizer.samplers.registry import check_sampler, make_sampler
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import ANCHOR, proposal_stage

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.long
class TestDefaultConforms(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: EvoMergingSampler(seed=0)


@pytest.mark.long
class TestEvolutionConforms(RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: EvoMergingSampler(seed=0, variant="joint", population=4)


def pool(names: Sequence[str], densities: bool = True) -> dict[str, BaseDistribution]:
    space: dict[str, BaseDistribution] = {}
    if densities:
        space |= {f"density[{name}]": FloatDistribution(0.0, 1.0) for name in names}
    return space | {f"weight[{name}]": FloatDistribution(-1.5, 1.5) for name in names}


NAMES = tuple("abcdef")
BEST = dict(zip(NAMES, (0.6, -0.4, 0.3, 0.0, 0.9, -0.1), strict=True))


def quadratic(params: dict[str, float]) -> float:
    """A bowl with an interaction, lowest (0) at ``BEST`` with "a" at density 0.7 and all others at 1."""
    names = [name for name in NAMES if f"weight[{name}]" in params]
    gap = np.array([params[f"weight[{name}]"] - BEST[name] for name in names])
    density = np.array([params.get(f"density[{name}]", 1.0) - (0.7 if name == "a" else 1.0) for name in names])
    return float(gap @ gap + 0.5 * gap.sum() ** 2 + 0.3 * (density @ density))


def optimise(
    study: Study,
    space: dict[str, BaseDistribution],
    trials: int,
    loss: Callable[[dict[str, float]], float] = quadratic,
    fails: Callable[[int], bool] = lambda number: False,
) -> None:
    for _ in range(trials):
        trial = study.ask(space)
        if fails(trial.number):
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss(trial.params))


def stages(study: Study) -> list[str | None]:
    return [proposal_stage(trial) for trial in study.trials]


def test_default_finds_a_signed_optimum_in_ten_evaluations_per_weight() -> None:
    space = pool(NAMES)
    study = optuna.create_study(sampler=EvoMergingSampler(seed=0, search_space=space))
    optimise(study, space, 60)
    assert study.best_value < 0.03  # the densities' share is 0.027
    for name in NAMES:
        assert study.best_params[f"weight[{name}]"] == pytest.approx(BEST[name], abs=0.05)


@pytest.mark.long
def test_default_turns_to_densities_once_the_weights_have_converged() -> None:
    space = pool(NAMES)
    study = optuna.create_study(sampler=EvoMergingSampler(seed=0, search_space=space))
    optimise(study, space, 100)
    assert study.best_value < 0.01
    assert study.best_params["density[a]"] == pytest.approx(0.7, abs=0.1)
    kinds = [kind for i, kind in enumerate(stages(study)) if i == 0 or kind != stages(study)[i - 1]]
    assert kinds[:4] == ["design", "weights", "probe", "everything"]


def test_maximising_is_minimising_the_negative() -> None:
    space = pool(NAMES)
    down = optuna.create_study(sampler=EvoMergingSampler(seed=0, search_space=space))
    up = optuna.create_study(direction="maximize", sampler=EvoMergingSampler(seed=0, search_space=space))
    optimise(down, space, 25)
    optimise(up, space, 25, lambda params: -quadratic(params))
    assert [t.params for t in down.trials] == [t.params for t in up.trials]


def test_paper_searches_densities_at_equal_weights_and_then_holds_the_best_of_them() -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(seed=0, variant="paper", search_space=space, first_stage=24, population=8)
    study = optuna.create_study(sampler=sampler)
    optimise(study, space, 40)
    first, second = study.trials[:24], study.trials[24:]
    assert stages(study) == ["denoise"] * 24 + ["scale"] * 16
    for trial in first:
        assert all(trial.params[f"weight[{name}]"] == pytest.approx(1 / 6, abs=2e-4) for name in NAMES)

    def penalised(trial: optuna.trial.FrozenTrial) -> float:
        return trial.value + 0.05 * float(np.mean([trial.params[f"density[{name}]"] for name in NAMES]))

    best = min(first, key=penalised)
    for trial in second:
        assert all(trial.params[f"density[{name}]"] == best.params[f"density[{name}]"] for name in NAMES)


@pytest.mark.parametrize("variant", ["paper", "lorahub", "joint"])
def test_evolution_improves_on_its_start(variant: Any) -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(seed=0, variant=variant, search_space=space, first_stage=24, population=8, sigma=0.2)
    study = optuna.create_study(sampler=sampler)
    optimise(study, space, 104)
    assert study.best_value < 0.4 * quadratic({f"weight[{name}]": 1 / 6 for name in NAMES})


def test_a_first_stage_that_does_not_pay_is_left_early() -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(
        seed=0, variant="paper", search_space=space, first_stage=400, population=4, patience=2, density_penalty=0.0
    )
    study = optuna.create_study(sampler=sampler)
    optimise(study, space, 20, lambda params: quadratic({**params, **{f"density[{n}]": 1.0 for n in NAMES}}))
    assert stages(study) == ["denoise"] * 12 + ["scale"] * 8


@pytest.mark.parametrize("variant", ["default", "paper", "lorahub", "joint"])
def test_a_killed_search_gets_the_proposals_it_would_have_got(variant: Any) -> None:
    space = pool(NAMES)

    def sampler() -> EvoMergingSampler:
        return EvoMergingSampler(seed=3, variant=variant, search_space=space, first_stage=12, population=6)

    whole = optuna.create_study(sampler=sampler())
    optimise(whole, space, 24, fails=lambda number: number % 7 == 5)
    resumed = optuna.create_study()
    for _ in range(4):
        resumed.sampler = sampler()
        optimise(resumed, space, 6, fails=lambda number: number % 7 == 5)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]


def test_a_search_continues_from_a_database(tmp_path: Path) -> None:
    space = pool(NAMES[:2])
    whole = optuna.create_study(sampler=EvoMergingSampler(seed=3, search_space=space))
    optimise(whole, space, 12)
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="s", storage=storage)
    for _ in range(2):
        resumed = optuna.load_study(
            study_name="s", storage=storage, sampler=EvoMergingSampler(seed=3, search_space=space)
        )
        optimise(resumed, space, 6)
    assert [t.params for t in resumed.trials] == [t.params for t in whole.trials]


def test_a_trial_that_was_proposed_keeps_its_proposal() -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(seed=0, search_space=space)
    study = optuna.create_study(sampler=sampler)
    optimise(study, space, 12)
    trial = study.ask()
    proposed = sampler.sample_relative(study, study.trials[-1], space)
    optimise(study, space, 1)
    again = EvoMergingSampler(seed=0, search_space=space)
    assert again.sample_relative(study, study.get_trials()[trial.number], space) == proposed


@pytest.mark.parametrize("variant", ["default", "paper", "lorahub", "joint"])
def test_workers_that_ask_together_get_different_points(variant: Any) -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(seed=0, variant=variant, search_space=space, population=6, first_stage=12)
    study = optuna.create_study(sampler=sampler)
    for _ in range(7):
        asked = [study.ask(space) for _ in range(4)]
        assert len({tuple(sorted(trial.params.items())) for trial in asked}) == 4
        for trial in reversed(asked):
            study.tell(trial, quadratic(trial.params))


def test_a_worker_that_never_returns_does_not_stop_evolution() -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(seed=0, variant="lorahub", search_space=space, population=6, sigma=0.2)
    study = optuna.create_study(sampler=sampler)
    study.ask(space)
    optimise(study, space, 150)
    assert study.best_value < 0.4 * quadratic({f"weight[{name}]": 1 / 6 for name in NAMES})


@pytest.mark.parametrize("variant", ["default", "paper", "lorahub", "joint"])
def test_all_failed_and_strange_losses_do_not_stop_the_search(variant: Any) -> None:
    space = pool(NAMES)
    sampler = EvoMergingSampler(seed=0, variant=variant, search_space=space, population=4, first_stage=8)
    study = optuna.create_study(sampler=sampler)
    optimise(study, space, 12, fails=lambda number: True)
    strange = iter([1e12, 1e-12, math.inf, 1.0] + [1.0] * 6)
    optimise(study, space, 10, lambda params: next(strange))
    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) >= 20


def test_failures_are_avoided() -> None:
    """Half of the space crashes: the search still finds the best of the rest, and soon stops asking for crashes."""
    space = pool(NAMES, densities=False)
    study = optuna.create_study(sampler=EvoMergingSampler(seed=0, search_space=space))
    for _ in range(70):
        trial = study.ask(space)
        if trial.params["weight[e]"] > 0.5:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, quadratic(trial.params))
    # The lowest loss on the edge is 0.16 + 0.5 (0.4 / 3.5)^2 + 5 (0.2 / 3.5)^2 = 0.183.
    assert study.best_value < 0.3
    assert sum(trial.state == TrialState.FAIL for trial in study.trials[35:]) < 18


@pytest.mark.parametrize("variant", ["default", "paper", "lorahub", "joint"])
def test_one_lora(variant: Any) -> None:
    space = pool(("only",))
    sampler = EvoMergingSampler(seed=0, variant=variant, search_space=space, population=5, first_stage=10, sigma=0.3)
    study = optuna.create_study(sampler=sampler)
    optimise(study, space, 40, lambda params: (params["weight[only]"] - 0.4) ** 2)
    assert study.best_params["weight[only]"] == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize("variant", ["default", "lorahub"])
def test_the_prefilter_keeps_the_loras_that_score_best_alone(variant: Any) -> None:
    names = tuple(f"l{i}" for i in range(10))
    space = pool(names)
    sampler = EvoMergingSampler(seed=0, variant=variant, search_space=space, top=3, population=5)
    study = optuna.create_study(sampler=sampler)

    def loss(params: dict[str, float]) -> float:
        return 2.0 - params["weight[l2]"] - params["weight[l7]"] + sum(params[f"weight[{name}]"] ** 2 for name in names)

    for i, name in enumerate(names):
        alone = {f"density[{other}]": 1.0 for other in names}
        alone |= {f"weight[{other}]": float(other == name) for other in names}
        study.add_trial(
            optuna.trial.create_trial(
                params=alone,
                distributions=space,
                value=loss(alone) + (0.1 * i if name not in ("l2", "l7") else 0.0),
                user_attrs={ANCHOR: f"expert {name}"},
            )
        )
    optimise(study, space, 30, loss)
    for trial in study.trials[14:]:
        moved = {name for name in names if trial.params[f"weight[{name}]"] != 0.0}
        assert moved <= {"l0", "l2", "l7"}
    assert study.best_params["weight[l2]"] > 0.0 and study.best_params["weight[l7]"] > 0.0


@pytest.mark.long
def test_preferences_decide_between_objectives() -> None:
    space = pool(NAMES, densities=False)
    ends = []
    for shares in ((1.0, 0.1), (0.1, 1.0)):
        sampler = EvoMergingSampler(seed=0, search_space=space, preferences=shares)
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for _ in range(50):
            trial = study.ask(space)
            weight = trial.params["weight[a]"]
            study.tell(trial, [(weight - 1.0) ** 2, -1000.0 * (weight + 1.0) ** 2])
        ends.append(study.trials[-1].params["weight[a]"])
    assert ends[0] > 0.3 and ends[1] < -0.3


@pytest.mark.parametrize("separable", [False, True])
def test_replaying_generations_gives_the_same_distribution_bit_for_bit(separable: bool) -> None:
    plan = (np.full(5, 0.5), 0.2, np.ones(5), 6, separable)
    living = Evolution(*plan)
    told = []
    for g in range(6):
        points = [living.sample(100 * g + i) for i in range(6)]
        told.append([(x, float((x**2).sum()) if i else math.nan) for i, x in enumerate(points)])
        living.replay(told)
    fresh = Evolution(*plan)
    fresh.replay(told)
    assert np.array_equal(living.sample(7), fresh.sample(7))


def test_large_pools_get_a_diagonal_covariance() -> None:
    names = tuple(f"l{i}" for i in range(31))
    space = pool(names, densities=False)
    found = {}
    covariances: tuple[Any, ...] = ("auto", "separable", "full")
    for covariance in covariances:
        sampler = EvoMergingSampler(seed=0, variant="lorahub", search_space=space, covariance=covariance, population=6)
        study = optuna.create_study(sampler=sampler)
        optimise(study, space, 14, lambda params: sum((value - 0.5) ** 2 for value in params.values()))
        found[covariance] = study.trials[-1].params
    assert found["auto"] == found["separable"] != found["full"]


def test_by_name_with_preferences() -> None:
    objectives = [Objective("maths"), Objective("loss", "minimize")]
    made = make_sampler(
        "evo-merging", seed=0, objectives=objectives, options={"preferences": "maths=0.7, loss=0.3", "top": 4}
    )
    assert isinstance(made, EvoMergingSampler)
    with pytest.raises(UserError, match="mahts"):
        make_sampler("evo-merging", seed=0, objectives=objectives, options={"preferences": "mahts=1"})
    assert "at least 2" in check_sampler("evo-merging", {"population": 1}, 1)[0]
    assert "text" in check_sampler("evo-merging", {"preferences": 3}, 1)[0]


@pytest.mark.parametrize(
    "wrong", [{"population": 1}, {"sigma": 0.0}, {"top": 0}, {"variant": "x"}, {"preferences": [0.0, 0.0]}]
)
def test_wrong_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        EvoMergingSampler(**wrong)
