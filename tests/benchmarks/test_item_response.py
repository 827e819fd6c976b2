"""Item response theory: items are told apart by their parents' answers, and few answers then say much."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.evaluation.item_response import combined_ability, fit_items, response_estimate


def simulated(seed: int, parents: int = 5, items: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Answers of parents and of one merge whose ability lies between theirs."""
    rng = np.random.default_rng(seed)
    discrimination, difficulty = rng.lognormal(0.3, 0.4, items), rng.normal(0, 2.5, items)
    abilities = np.append(np.linspace(-2, 2, parents), rng.uniform(-1.5, 1.5))
    chances = 1 / (1 + np.exp(-(discrimination * abilities[:, None] - difficulty)))
    answers = (rng.random(chances.shape) < chances).astype(float)
    return answers[:-1], answers[-1]


def test_fitted_abilities_are_in_the_order_of_the_scores() -> None:
    parents, _ = simulated(0)
    model = fit_items(parents)
    assert list(np.argsort(model.abilities[:, 0] * np.sign(model.discrimination.mean()))) == list(
        np.argsort(parents.mean(axis=1))
    )
    hard, easy = parents.sum(axis=0) == 0, parents.sum(axis=0) == len(parents)
    assert model.difficulty[hard].mean() > model.difficulty[easy].mean()


def test_few_items_say_more_with_the_parents_answers_than_alone() -> None:
    plain, mp, gmp = [], [], []
    for seed in range(60):
        parents, merge = simulated(seed)
        asked = np.random.default_rng(seed + 1000).choice(500, 30, replace=False)
        found = response_estimate(parents, merge[asked], asked)
        plain.append(found.mean - merge.mean())
        mp.append(found.mp - merge.mean())
        gmp.append(found.gmp - merge.mean())
    error = [float(np.sqrt(np.mean(np.square(one)))) for one in (plain, mp, gmp)]
    assert error[1] < 0.9 * error[0] and error[2] < 0.9 * error[0], error


def test_exact_where_all_items_were_asked_or_nothing_can_be_fitted() -> None:
    parents, merge = simulated(1)
    everything = response_estimate(parents, merge, np.arange(500))
    assert everything.mp == everything.gmp == merge.mean()
    alone = response_estimate(parents[:1], merge[:50], np.arange(50))
    assert alone.mp == alone.gmp == merge[:50].mean()


def test_a_copy_of_a_parent_is_recognised() -> None:
    parents, _ = simulated(2)
    model = fit_items(parents)
    for place in (0, 4):
        ability = combined_ability(model, parents[place], np.arange(500))
        assert model.chances(ability).mean() == pytest.approx(parents[place].mean(), abs=0.03)


def test_answers_that_are_no_shares_are_refused() -> None:
    with pytest.raises(ValueError, match=r"answers in \[0, 1\]"):
        fit_items(np.array([[0.0, 2.0], [1.0, 0.5]]))
    with pytest.raises(ValueError, match="1 parents"):
        fit_items(np.ones((1, 4)))
