"""MM-MO learns from how clearly items were answered, where it was told of every trial, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from mergefront.optimizer import MMMOSampler
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.search.attributes import MARGINS
from mergefront.optimizer.search.loop import told_attributes

ADDED: Mapping[str, Any] = {"method": "task_arithmetic", "parameters": {"weight": [0, 1]}}
TIES: Mapping[str, Any] = {"method": "ties", "parameters": {"weight": [0, 1], "density": [0.1, 1]}}


def evaluated(point: np.ndarray, objectives: int) -> Evaluation:
    items = {}
    for objective in range(objectives):
        rng = np.random.default_rng(objective)
        margins = rng.normal(0.5, 1.0, 20) + (point - 0.5) @ rng.normal(0.0, 2.0, (len(point), 20))
        right = tuple((margins > 0).astype(float).tolist())
        items[str(objective)] = ItemScores(tuple(map(str, range(20))), right, tuple(margins.tolist()))
    return Evaluation({name: scored.mean for name, scored in items.items()}, {}, items)


def next_proposal(space: MergeSpace, without: int | None = None, objectives: int = 2, **options: Any) -> dict[str, Any]:
    """After eight trials; that of number ``without`` has no margins."""
    sampler = MMMOSampler(
        seed=0, search_space=space.distributions(), n_startup=8, rule=space.merge_rule,
        ranges=[(0, 1)] * objectives, **options,
    )  # fmt: skip
    study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
    names = [Objective(str(objective)) for objective in range(objectives)]
    for number in range(8):
        drawn = np.random.default_rng(number).uniform(0.1, 1.0, len(space.distributions()))
        params = dict(zip(space.distributions(), drawn.round(4).tolist(), strict=True))
        evaluation = evaluated(drawn[:2], objectives)
        attributes, _ = told_attributes(names, (), evaluation)
        assert MARGINS in attributes.system
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE, params=params, distributions=space.distributions(),
                values=list(evaluation.scores.values()), user_attrs=dict(attributes.user),
                system_attrs={} if number == without else dict(attributes.system),
            )
        )  # fmt: skip
    return study.ask(space.distributions()).params


def space_of(models: str, **settings: Any) -> MergeSpace:
    return MergeSpace(list(models), base_model="base", **{**ADDED, **settings})


@pytest.mark.parametrize("models", ["ab", "abcd"])
def test_margins_are_learned_from_where_few_weights_are_added(models: str) -> None:
    space = space_of(models)
    assert next_proposal(space) == next_proposal(space) != next_proposal(space, item_margins=False)


@pytest.mark.parametrize("without", [0, 7])
def test_a_study_begun_before_margins_were_told_goes_on_as_it_was_begun(without: int) -> None:
    space = space_of("ab")
    assert next_proposal(space, without) == next_proposal(space, item_margins=False)


@pytest.mark.parametrize(
    ("space", "options"),
    [
        (space_of("abcde"), {}),
        (space_of("ab", **TIES), {}),
        (space_of("ab", granularity={"blocks": 2}, layers=4), {}),
        (space_of("ab"), {"variant": "paper"}),
        (space_of("ab"), {"objectives": 5}),
    ],
    ids=["five weights", "ties", "blocks", "paper", "five objectives"],
)
def test_elsewhere_they_change_nothing(space: MergeSpace, options: Mapping[str, Any]) -> None:
    assert next_proposal(space, **options) == next_proposal(space, item_margins=False, **options)
