"""Long studies: a proposal knows some hundred trials that stand for all, keeps the front in sight, and repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.samplers.common.history import earlier_trials, read_history
from mergefront.optimizer.samplers.common.representatives import MOST_OBSERVED, limited, representatives, spread_order
from mergefront.optimizer.scores.pareto import nondominated
from mergefront.optimizer.search.attributes import ANCHOR, OUTSIDE_SPACE, expected_improvement, proposal_stage

EVERY = np.ones(200, dtype=bool)


def cloud(seed: int, n: int = 200, m: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, m))


@given(st.integers(0, 50), st.integers(2, 4), st.integers(10, 120))
def test_as_many_as_asked_for_and_nobody_twice(seed: int, objectives: int, most: int) -> None:
    values = cloud(seed, m=objectives)
    feasible = np.random.default_rng(seed).random(200) < 0.5
    kept, beyond = representatives(values, feasible, most)
    assert len(kept) == len(set(kept.tolist())) == most
    assert sorted(kept.tolist()) == kept.tolist()
    assert len(beyond) <= most // 2 and not set(beyond.tolist()) & set(kept.tolist())
    assert (
        feasible[beyond].all()
        and nondominated(values[feasible])[np.searchsorted(np.flatnonzero(feasible), beyond)].all()
    )


def test_a_front_that_fits_is_there_whole_and_the_rest_comes_from_all_times() -> None:
    values = cloud(1)
    front = np.flatnonzero(nondominated(values))
    kept, beyond = representatives(values, EVERY, 60)
    assert len(front) < 30 and set(front.tolist()) <= set(kept.tolist()) and not len(beyond)
    thirds = np.histogram(kept, bins=[0, 67, 133, 200])[0]
    assert thirds.min() >= 10


def test_a_front_that_does_not_fit_is_thinned_out_evenly() -> None:
    angle = np.linspace(0.0, np.pi / 2, 200)
    values = np.column_stack([np.sin(angle), 1000 * np.cos(angle)])
    kept, beyond = representatives(values, EVERY, 40)
    shown = np.sort(np.concatenate([kept, beyond]))
    assert {0, 199} <= set(shown.tolist())
    assert np.diff(shown).max() <= 20


def test_what_violates_a_constraint_is_not_among_the_best() -> None:
    values = np.arange(200.0)[:, None]
    feasible = np.arange(200) < 100
    kept, _ = representatives(values, feasible, 20)
    assert set(range(90, 100)) <= set(kept.tolist())
    assert (kept >= 100).sum() <= 8


def test_what_was_told_last_is_known_though_it_disappointed() -> None:
    values = cloud(2)
    values[-10:] -= 100.0
    kept, _ = representatives(values, EVERY, 40)
    assert set(range(190, 200)) <= set(kept.tolist())


def test_equal_values_make_no_difference() -> None:
    assert len(set(spread_order(np.zeros((5, 2)), 3).tolist())) == 3


SPACE = {name: FloatDistribution(0.0, 1.0) for name in ("x", "y")}


def long_study(trials: int, *, collapsed: int | None = None) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=MMMOSampler(seed=0, search_space=SPACE))
    drawn = np.random.default_rng(3).random((trials, 2))
    study.add_trials(
        [
            create_trial(
                params={"x": x, "y": y},
                distributions=dict(SPACE),
                values=[-5.0, 5.0]
                if number == collapsed
                else [1 - (x - 0.7) ** 2 - 0.1 * y, (x - 0.2) ** 2 + (y - 0.5) ** 2],
                user_attrs={ANCHOR: f"anchor {number}"} if number < 2 else {},
            )
            for number, (x, y) in enumerate(drawn.tolist())
        ]
    )
    return study


def test_a_long_study_is_searched_with_its_model_and_repeats() -> None:
    first, second = long_study(MOST_OBSERVED + 60), long_study(MOST_OBSERVED + 60)
    asked, again = first.ask(SPACE), second.ask(SPACE)
    assert asked.params == again.params
    assert proposal_stage(first.get_trials(deepcopy=False)[-1]) == "model"
    assert abs(asked.params["y"] - 0.5) < 0.35 and 0.1 < asked.params["x"] < 0.8, "near the front, not anywhere"


@pytest.mark.long
@pytest.mark.parametrize("trials", [MOST_OBSERVED - 60, MOST_OBSERVED + 60])
def test_only_above_the_limit_is_anything_left_out(trials: int) -> None:
    """A trial that is left out may have collapsed as well; a trial that is not changes what is proposed."""
    earlier = earlier_trials(long_study(trials), trials)
    history = limited(read_history(earlier, trials, initial=0, batch=1), [True, False])
    left_out = {trial.number for trial in earlier} - {trial.number for trial in history.observed}
    assert len(history.observed) == min(trials, MOST_OBSERVED + 2), "two anchors besides"
    far_behind = {number for number in left_out if number not in {t.number for t in history.front_beyond}}
    assert bool(far_behind) == (trials > MOST_OBSERVED)
    collapsed = min(far_behind, default=100)
    as_it_was, changed = long_study(trials).ask(SPACE), long_study(trials, collapsed=collapsed).ask(SPACE)
    assert (as_it_was.params == changed.params) == bool(far_behind)


@pytest.mark.long
def test_a_front_member_that_is_left_out_has_to_be_improved_on_all_the_same() -> None:
    """What is a gain over those that stand for the front may be none over the front: the search would go in circles.

    A trial outside the space is never learnt from and counts for the front. So a study whose left-out front members are
    such trials, and nothing else is left out, proposes the same; one that has lost them expects a larger improvement.
    """
    drawn = np.random.default_rng(3).random((MOST_OBSERVED + 100, 2))
    angle, depth = drawn[:, 0] * np.pi / 2, 1.0 - np.maximum(drawn[:, 1] - 0.6, 0.0)
    values = np.column_stack([depth * np.sin(angle), depth * np.cos(angle)])
    kept, beyond = representatives(values, np.ones(len(values), dtype=bool), MOST_OBSERVED)
    assert len(beyond) >= 3

    def next_trial(left_out: dict[str, Any] | None, beyond_too: dict[str, Any] | None) -> FrozenTrial:
        """``left_out`` and ``beyond_too`` change those trials of the study that nobody learns from."""
        sampler = MMMOSampler(seed=0, search_space=SPACE, n_startup=0, ranges=[(0.0, 1.0)] * 2)
        study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
        for number, (point, scores) in enumerate(zip(drawn.tolist(), values.tolist(), strict=True)):
            changes = (beyond_too if number in beyond else left_out if number not in kept else None) or {}
            given = {"state": TrialState.COMPLETE, "values": scores, **changes}
            study.add_trial(
                create_trial(params=dict(zip(SPACE, point, strict=True)), distributions=dict(SPACE), **given)
            )
        study.ask(SPACE)
        return study.get_trials(deepcopy=False)[-1]

    lost: dict[str, Any] = {"state": TrialState.FAIL, "values": None, "user_attrs": {OUTSIDE_SPACE: True}}
    known = next_trial(None, None)
    alike = next_trial(lost, {"user_attrs": {OUTSIDE_SPACE: True}})
    without = next_trial(lost, lost)
    assert known.params == alike.params
    expected, same, too_much = (expected_improvement(trial) for trial in (known, alike, without))
    assert expected is not None and too_much is not None and expected == same < too_much
