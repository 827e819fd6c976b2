"""How many evaluations a search spends on points that no model chose."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.distributions import FloatDistribution

from mergefront.optimizer.samplers.common.initial_design import startup_size
from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler
from mergefront.optimizer.search.attributes import proposal_stage


def test_many_anchors_that_leave_no_direction_out_are_the_whole_design() -> None:
    experts = np.vstack([np.zeros((1, 12)), np.eye(12), np.full((1, 12), 1 / 12)])
    assert startup_size(12, len(experts), list(experts)) == 0
    with_density = np.hstack([experts, np.ones((len(experts), 12))])
    assert startup_size(24, len(experts), list(with_density)) == 2
    assert startup_size(12, 5, list(experts[:5])) == 2
    assert startup_size(12, 0, []) == 12
    assert startup_size(12, 14, []) == 2, "anchors that are no points of the space say nothing of its directions"


def test_a_search_over_many_experts_begins_with_the_model_after_its_anchors() -> None:
    space = {f"weight[e{i}]": FloatDistribution(0, 1) for i in range(12)}
    anchors = [{name: float(name == other) for name in space} for other in (*space, "none of them")]
    study = optuna.create_study(
        directions=["maximize"] * 2, sampler=MMMOSampler(seed=0, search_space=space, anchors=anchors)
    )

    def evaluate(trial: optuna.Trial) -> tuple[float, float]:
        weights = np.array([trial.suggest_float(name, 0, 1) for name in space])
        return float(-((weights - 0.3) ** 2).sum()), float(-((weights[:6] - 0.6) ** 2).sum())

    study.optimize(evaluate, n_trials=15)
    assert [proposal_stage(trial) for trial in study.trials] == ["anchor"] * 13 + ["model"] * 2
