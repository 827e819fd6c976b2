"""Claims about who beats whom: made when the items carry them, withheld when they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mergefront as mf
from mergefront.formatting import coefficients, difference, duration, number, score
from mergefront.optimizer.scores.comparison import Difference
from mergefront.optimizer.scores.differences import oriented_items
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.verdict import verdict
from mergefront.results.verdict_text import verdict_lines

ITEMS = 200


def scored(passed: Sequence[float], objectives: Sequence[str] = ("maths",)) -> Evaluation:
    items = ItemScores(tuple(f"item-{index}" for index in range(len(passed))), tuple(passed))
    return Evaluation(
        dict.fromkeys(objectives, items.mean),
        dict.fromkeys(objectives, items.standard_error),
        dict.fromkeys(objectives, items),
    )


def search(folder: Path, gain: int) -> mf.Study:
    """Anchors pass half of the items; merges pass ``gain`` more (of 200), and no other ones less."""

    def evaluate(recipe: mf.Recipe) -> Evaluation:
        params = recipe.params
        is_merge = recipe.method == "ties" and 0 < params["weight[b]"] < 1 and len(set(params.values())) > 2
        return scored([float(index % 2 == 0 or (is_merge and index < 2 * gain)) for index in range(ITEMS)])

    return mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties", parameters={"weight": [0, 1], "density": [0.1, 0.9]}),
        evaluate=evaluate, objectives=["maths"], sampler="random", evaluations=9, name="verdict",
        storage=f"sqlite:///{folder}/v.db",
    )  # fmt: skip


def test_a_gain_on_many_items_is_a_win_over_every_anchor(tmp_path: Path) -> None:
    study = search(tmp_path, gain=30)
    found = verdict(study)
    assert found is not None and found.paired and found.exact
    assert all(found.beaten_by(anchor) for anchor in found.anchors)
    assert "beats the best anchor" in verdict_lines(found, study.objectives)[0]
    assert found.match(found.picked, found.best_anchor).beats


def test_a_gain_on_two_items_is_noise_and_said_to_be(tmp_path: Path) -> None:
    study = search(tmp_path, gain=2)
    found = verdict(study)
    assert found is not None and not any(match.beats for match in found.matches)
    (part,) = found.match(found.picked, found.best_anchor).by_objective.values()
    assert part.difference.mean > 0 and not part.is_better
    lines = verdict_lines(found, study.objectives)
    assert lines[0].startswith("No merge beats the best anchor") and "p = 1.000" in lines[1]
    assert sum("not beaten" in line for line in lines) == len(found.anchors)


def test_a_loss_counts_without_correction(tmp_path: Path) -> None:
    """Corrected over all comparisons, eight items lost of 200 are never a loss, and any gain would be a win."""
    space = mf.MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0, 1]})
    anchors = [(0.5, 0.5)] * 5
    scores = iter([*anchors, *[(0.7, 0.46)] * 6])

    def evaluate(recipe: mf.Recipe) -> Evaluation:
        rows = dict(zip(("maths", "french"), next(scores), strict=True))
        items = {
            name: ItemScores(tuple(map(str, range(ITEMS))), tuple(float(n < rate * ITEMS) for n in range(ITEMS)))
            for name, rate in rows.items()
        }
        return Evaluation(rows, {name: one.standard_error for name, one in items.items()}, items)

    study = mf.search(space=space, evaluate=evaluate, objectives=["maths", "french"], sampler="random", evaluations=11,
                      name="loss", storage=f"sqlite:///{tmp_path}/v.db")  # fmt: skip
    found = verdict(study)
    assert found is not None
    match = found.match(found.picked, "uniform average")
    lost = match.by_objective["french"]
    assert match.better == ["maths"] and match.worse == ["french"] and not match.beats
    assert lost.p_value == lost.difference.p_value and lost.p_value * found.comparisons > 0.05


def test_without_noise_a_difference_is_taken_as_exact_and_said_to_be(tmp_path: Path) -> None:
    study = mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties", parameters={"weight": [0, 1], "density": 0.5}),
        evaluate=lambda recipe: {"maths": 1.0 + recipe.params.get("weight[a]", 0) * recipe.params.get("weight[b]", 0)},
        objectives=["maths"], sampler="random", evaluations=12, name="exact", storage=f"sqlite:///{tmp_path}/v.db",
    )  # fmt: skip
    found = verdict(study)
    assert found is not None and not found.noise_known
    assert "taken as exact" in "\n".join(verdict_lines(found, study.objectives))


def test_rounding_is_no_win_however_sure(tmp_path: Path) -> None:
    """Merges of copies of one model are that model up to rounding, and its small shift is the same in every item."""

    def evaluate(recipe: mf.Recipe) -> Evaluation:
        shift = 1e-7 * recipe.params.get("weight[a]", 0) * recipe.params.get("weight[b]", 0)
        losses = ItemScores(tuple(map(str, range(ITEMS))), tuple(2 + index / ITEMS - shift for index in range(ITEMS)))
        return Evaluation({"loss": losses.mean}, {"loss": losses.standard_error}, {"loss": losses})

    study = mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties", parameters={"weight": [0, 1], "density": 0.5}),
        evaluate=evaluate, objectives=[Objective("loss", "minimize")], sampler="random", evaluations=12, name="copies",
        storage=f"sqlite:///{tmp_path}/v.db",
    )  # fmt: skip
    found = verdict(study)
    assert found is not None and not any(match.beats for match in found.matches)
    assert abs(found.normalised[found.picked][0]) < 1e-6 and abs(study.hypervolume()) < 1


def test_report_items_judge_the_merge_that_the_search_items_picked(tmp_path: Path) -> None:
    study = search(tmp_path, gain=30)
    on_search = verdict(study)
    assert on_search is not None and verdict(study, "report") is None
    half = [float(index % 2) for index in range(ITEMS)]
    for candidate in {c.recipe.digest: c for c in (*study.anchors(), *study.front())}.values():
        study.ledger.record(candidate.recipe, scored(half), "report")
    found = verdict(study, "report")
    assert found is not None and found.picked == on_search.picked
    assert not any(match.beats for match in found.matches)


def test_items_of_a_minimised_objective_are_turned_round() -> None:
    loss = Objective("loss", "minimize")
    negative = ItemScores(("a", "b"), (-1.0, -3.0))
    positive = ItemScores(("a", "b"), (1.0, 3.0))
    for items in (negative, positive):
        made = oriented_items(Evaluation({"loss": 2.0}, {}, {"loss": items}), loss)
        assert made is not None and made.tolist() == [-1.0, -3.0]
    assert oriented_items(Evaluation({"loss": 7.0}, {}, {"loss": positive}), loss) is None


def test_numbers_read_well() -> None:
    assert [number(value) for value in (0.61, 0.0, -0.006, 774.05, 1234567.8, 0.00012, float("nan"))] == [
        "0.610", "0.000", "-0.006", "774.050", "1,234,568", "0.00012", "–",
    ]  # fmt: skip
    # What is left of 0 by rounding is 0, as a score, a bound and an error.
    assert [number(value) for value in (-1.3e-19, 3.5e-18, -0.0)] == ["0.000"] * 3
    assert score(-1.3e-19, 3.5e-18) == difference(Difference(-1e-17)) == "0.000"
    assert [duration(value) for value in (0.24, 42, 245, 7800)] == ["0.2 s", "42 s", "4:05", "2:10:00"]


def test_many_coefficients_become_ranges_in_one_line() -> None:
    params = {f"weight[{name}, block {block}]": 0.1 * block for name in ("a", "b") for block in range(10)}
    line = coefficients({**params, "lambda": 1.0, "normalize": True}, ["a", "b"])
    assert line == "weight 0.00…0.90/0.00…0.90 · lambda 1.00 · normalize true"
