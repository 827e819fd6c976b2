"""Our closed forms and BoTorch's Monte Carlo are two ways to the same acquisition."""

from __future__ import annotations

import numpy as np
import optuna
import pytest

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.samplers.gaussian_process.fit import fit_surrogate
from mergefront.optimizer.samplers.mmmo.acquisition import HypervolumeImprovement
from mergefront.optimizer.samplers.mmmo.botorch_engine import BoTorchImprovement

REFERENCE = np.array([-1.0, -1.0])


def test_both_engines_agree_where_there_is_something_to_gain() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((20, 3))
    y = np.stack([-((x - 0.3) ** 2) @ [1, 0.5, 0.2], -((x - 0.7) ** 2) @ [0.2, 0.5, 1]], axis=1)
    noise = np.full(y.shape, 1e-4)
    theirs = BoTorchImprovement(x, y, noise, np.zeros((0, 3)), REFERENCE, 512, 0)
    half = rng.standard_normal((64, 20, 2))
    surrogate = fit_surrogate(x, y, noise)
    ours = HypervolumeImprovement(
        surrogate, np.zeros((0, 3)), REFERENCE, np.zeros((0, 2)), np.concatenate([half, -half])
    )
    points = rng.random((200, 3))
    a, b = ours.values(points), theirs.values(points)
    promising = b > np.quantile(b, 0.7)
    assert np.abs(a - b)[promising].max() < 0.5
    assert np.corrcoef(a[promising], b[promising])[0, 1] > 0.99
    _, gradient = theirs.value_and_gradient(points[0])
    step = 1e-5 * np.eye(3)
    numeric = [(theirs.values(points[:1] + d)[0] - theirs.values(points[:1] - d)[0]) / 2e-5 for d in step]
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("objectives", [1, 2])
def test_a_search_on_botorch_repeats_itself(objectives: int) -> None:
    def run() -> list[dict[str, float]]:
        sampler = MMMOSampler(seed=0, n_startup=4, budget="botorch")
        study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)

        def score(trial: optuna.Trial) -> list[float]:
            a, b = trial.suggest_float("a", 0, 1), trial.suggest_float("b", 0, 1)
            return [-((a - 0.3) ** 2) - b * b, -((b - 0.7) ** 2)][:objectives]

        study.optimize(score, n_trials=6)
        return [trial.params for trial in study.trials]

    assert run() == run()
