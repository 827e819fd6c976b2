"""What all candidates of a race score by now: the same however it was come by, and cheap as a study grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mergefront.optimizer.racing.joint_scores import JointModel
from mergefront.optimizer.racing.standings import AnsweredItems, Standings, TaskStandings, fitted
from mergefront.optimizer.scores.evaluation import RACED, Estimate, Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective

ITEMS, TASK = 120, (Objective("maths"),)


def margins_of(count: int, items: int, seed: int) -> np.ndarray:
    """Candidates along a line of merges, near ones answering alike."""
    rng = np.random.default_rng(seed)
    skill, place = rng.normal(0, 1.5, (2, items)), rng.random((count, 1))
    return (1 - place) * skill[0] + place * skill[1] + rng.normal(0, 0.5, (count, items)) + 0.3


def asked_of(count: int, items: int, seed: int) -> list[np.ndarray]:
    """Everybody answers the same twentieth of the items, and three twentieths of its own."""
    order = np.random.default_rng(seed + 1000).permutation(items)
    core, own = order[: items // 20], order[items // 20 :]
    return [np.append(core, np.roll(own, -row * (items // 10))[: 3 * items // 20]) for row in range(count)]


def evaluations(count: int, *, decisive: Callable[[int], bool] = lambda row: True) -> list[Evaluation]:
    """Of a race; where margins do not decide the scores they are upside down."""
    margins = margins_of(count, ITEMS, 0)
    found = []
    for row, asked in enumerate(asked_of(count, ITEMS, 0)):
        ids = tuple(f"q{index}" for index in asked)
        shown = margins[row, asked] if decisive(row) else -margins[row, asked]
        scores = (margins[row, asked] > 0).astype(float)
        items = {"maths": ItemScores(ids, tuple(scores.tolist()), tuple(shown.tolist()))}
        details = {RACED: {"of": {"maths": ITEMS}}}
        found.append(Evaluation({"maths": float(scores.mean())}, {"maths": 0.1}, items, details=details))
    return found


def estimates(standings: Standings, finished: Sequence[Evaluation]) -> list[Estimate]:
    return [one["maths"] for one in standings.of(TASK, finished)]


@pytest.mark.parametrize("first_upside_down", [99, 27], ids=["margins decide", "margins of the 28th do not"])
def test_a_process_that_was_started_anew_estimates_the_same_to_the_last_bit(first_upside_down: int) -> None:
    """A resumed search would propose, and ask items of, other candidates than the uninterrupted one."""
    finished = evaluations(34, decisive=lambda row: row < first_upside_down)
    remembered = Standings()
    for count in range(1, len(finished) + 1):
        # As a race does, which knows all of the task's items from the start.
        remembered.task("maths", finished[: count - 1]).order(tuple(f"q{index}" for index in range(ITEMS)), 0)
        assert estimates(remembered, finished[:count]) == estimates(Standings(), finished[:count])


def test_another_order_of_finishing_is_another_study() -> None:
    finished = evaluations(30)
    standings = Standings()
    estimates(standings, finished)
    turned = [*reversed(finished)]
    assert estimates(standings, turned) == estimates(Standings(), turned)


def test_most_candidates_cost_no_fit_and_few_are_not_in_it() -> None:
    """The time of a study would grow with the square of its trials."""
    sizes = [fitted(count) for count in range(3001)]
    assert sizes[:21] == list(range(21)) and len(set(sizes[100:])) < 45
    assert all(size <= count <= 1.1 * size for count, size in enumerate(sizes))


@pytest.mark.parametrize("with_margins", [True, False])
def test_later_candidates_are_known_as_well_as_those_that_were_fitted(with_margins: bool) -> None:
    """Whoever came just before a fit or just after it has the same chance of staying on the front."""
    count, first, items = 40, 30, 400
    errors, stated, plain = [], [], []
    for seed in range(8):
        margins = margins_of(count, items, seed)
        truth, seen = margins > 0, np.full(margins.shape, np.nan)
        for row, asked in enumerate(asked_of(count, items, seed)):
            seen[row, asked] = margins[row, asked]
        scores = np.where(np.isnan(seen), np.nan, seen > 0)
        model = JointModel.of(scores[:first], seen[:first] if with_margins else None, items)
        assert model is not None
        for row in range(first, count):
            asked = np.flatnonzero(~np.isnan(seen[row]))
            found = model.read(asked, scores[row, asked], seen[row, asked] if with_margins else None)
            errors.append(found.mean - truth[row].mean())
            stated.append(found.unasked_error)
            plain.append(scores[row, asked].mean() - truth[row].mean())
    made = np.sqrt(np.mean(np.square(errors)))
    assert made < (0.6 if with_margins else 0.85) * np.std(plain)
    assert 0.85 < np.mean(stated) / made < 1.35
    assert np.mean(np.abs(errors) <= 2 * np.array(stated)) > 0.92


def test_a_later_candidate_that_was_asked_everything_is_known_exactly() -> None:
    margins = margins_of(31, ITEMS, 3)
    seen = np.full(margins.shape, np.nan)
    for row, asked in enumerate(asked_of(31, 60, 3)):  # of the first half of the items
        seen[row, asked] = margins[row, asked]
    model = JointModel.of(np.where(np.isnan(seen), np.nan, seen > 0)[:30], None, ITEMS)
    assert model is not None
    found = model.read(np.arange(ITEMS), (margins[30] > 0).astype(float), None)
    assert found.mean == pytest.approx((margins[30] > 0).mean()) and found.unasked_error == 0.0
    one = model.read(np.array([ITEMS - 1]), np.array([1.0]), None)
    assert 0.0 <= one.mean <= 1.0 and one.unasked_error > 0.1


def standings_of(*answered: dict[str, float] | None) -> TaskStandings:
    task = TaskStandings()
    for scores in answered:
        task.add(None if scores is None else ItemScores(tuple(scores), tuple(scores.values())))
    return task


def test_how_often_items_were_asked_is_counted_exactly() -> None:
    """The next candidate answers what was asked least."""
    assert standings_of().times_asked().tolist() == []
    task = standings_of({"a": 1.0, "b": 0.0}, None, {"b": 1.0, "c": 1.0})
    task.columns(["d"])
    assert task.times_asked().tolist() == [1, 2, 1, 0]


def test_who_was_asked_everything_has_its_own_mean_and_who_has_no_items_has_none() -> None:
    """A front without races is that of the plain scores."""
    task = standings_of({"a": 1.0, "b": 0.5}, None, {"a": 0.0, "b": 0.25})
    found = task.estimates(2)
    assert [one if one is None else (one.mean, one.unasked_error) for one in found] == [(0.75, 0.0), None, (0.125, 0.0)]
    own = AnsweredItems(task.columns(["a", "b"]), np.array([0.25, 0.75]), None)
    assert task.estimate(2, own).mean == 0.5
    assert standings_of().estimates(2) == []


def test_a_task_that_lost_items_is_estimated_on_those_that_were_answered() -> None:
    """Its file was shortened between two runs of a study: what was paid for still counts."""
    task = standings_of({"a": 1.0, "b": 0.0, "c": 1.0})
    (found,) = task.estimates(2)
    assert found is not None and found.mean == 2 / 3 and found.unasked_error == 0.0


def test_scores_on_some_items_are_those_of_these_items() -> None:
    """A race compares a candidate with its rivals on the items that it has answered."""
    task = standings_of({"a": 1.0, "b": 0.25, "c": 0.5}, {"c": 0.75, "d": 0.0})
    found = task.scores(task.columns(["c", "b"]))
    np.testing.assert_array_equal(found, [[0.5, 0.25], [0.75, np.nan]])
    np.testing.assert_array_equal(task.scores(task.columns(["d", "a"]), [1]), [[0.0, np.nan]])
