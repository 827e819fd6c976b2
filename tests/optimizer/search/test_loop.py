"""What a search does besides proposing: the anchor that needs scores, and what it says of itself while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import METRIC_WEIGHTED

SPACE = mf.MergeSpace(["maths", "french"], method="task_arithmetic", parameters={"weight": [0, 1]})


def search(folder: Path, evaluations: int = 8, maths: str = "maximize", **more: Any) -> mf.Study:
    """Each model scores 0.6 or 0.2 on its own objective, whole."""
    return mf.search(
        space=SPACE,
        evaluate=scores,
        objectives=[{"name": "maths", "direction": maths}, "french"],
        sampler="random",
        evaluations=evaluations,
        storage=f"sqlite:///{folder}/study.db",
        name="loop",
        **more,
    )


def scores(recipe: mf.Recipe) -> dict[str, float]:
    return {
        "maths": 0.6 * float(recipe.params["weight[maths]"]),
        "french": 0.2 * float(recipe.params["weight[french]"]),
    }


@pytest.mark.parametrize(("maths", "weight"), [("maximize", 0.75), ("minimize", 0.0)])
def test_the_metric_weighted_average_weighs_by_what_is_good(tmp_path: Path, maths: str, weight: float) -> None:
    """An expert with a high loss would get the largest weight."""
    (anchor,) = [one for one in search(tmp_path, maths=maths).anchors() if one.anchor == METRIC_WEIGHTED]
    assert anchor.params["weight[maths]"] == pytest.approx(weight)
    assert anchor.params["weight[french]"] == pytest.approx(1 - weight)


def test_a_study_that_goes_on_is_not_called_stopped(tmp_path: Path) -> None:
    stopped = search(tmp_path, 6).stopped
    assert stopped is not None and stopped.cause == "budget"
    said: list[object] = []
    url = f"sqlite:///{tmp_path}/study.db"
    again = search(tmp_path, 8, on_trial_end=lambda outcome: said.append(mf.load_study("loop", storage=url).stopped))
    assert said == [None, None] and again.stopped is not None


@pytest.mark.cases(1)
@pytest.mark.parametrize("sampler", ["mm-mo", "map", "tpe", "evo-merging", "random"])
def test_a_corner_that_cannot_be_evaluated_costs_no_more_than_a_part_of_the_budget(
    tmp_path: Path, sampler: str
) -> None:
    """Scores rise towards the corner: it was asked for again and again, until the search stopped."""
    asked: list[bool] = []

    def evaluate(recipe: mf.Recipe) -> dict[str, float]:
        a, b = (float(recipe.params[f"weight[{name}]"]) for name in ("maths", "french"))
        asked.append(a + b > 1.3)
        return {"maths": float("nan") if asked[-1] else a + 0.3 * b, "french": b + 0.3 * a}

    study = mf.search(
        space=SPACE,
        evaluate=evaluate,
        objectives=["maths", "french"],
        sampler=sampler,
        evaluations=30,
        storage=f"sqlite:///{tmp_path}/study.db",
        name="corner",
    )
    assert study.finished_count() == 30 and 0 < sum(asked) < 20


def test_a_world_that_breaks_down_stops_the_search(tmp_path: Path) -> None:
    """Every candidate fails from the twelfth on: not only a region of the space does."""
    asked: list[mf.Recipe] = []

    def evaluate(recipe: mf.Recipe) -> dict[str, float]:
        asked.append(recipe)
        if len(asked) > 12:
            raise OSError("no space left on device")
        return scores(recipe)

    with pytest.raises(mf.SearchStoppedError, match="in a row failed, all of kind 'OSError'"):
        mf.search(
            space=SPACE,
            evaluate=evaluate,
            objectives=["maths", "french"],
            evaluations=60,
            storage=f"sqlite:///{tmp_path}/study.db",
            name="full",
        )
    assert 17 <= len(asked) < 40


@pytest.mark.cases(2)
@pytest.mark.parametrize("sampler", ["mm-mo", "cma-es", "tpe", "nsga2", "random", "sobol"])
def test_samplers_search_the_simplex_and_go_on_as_if_they_had_not_stopped(tmp_path: Path, sampler: str) -> None:
    """What Optuna shows are the weights of the merge, and mm-mo finds the best mixture."""
    best = {"maths": 0.6, "french": 0.3, "code": 0.1}

    def until(evaluations: int, folder: str) -> mf.Study:
        (tmp_path / folder).mkdir(exist_ok=True)
        return mf.search(
            space=mf.MergeSpace(list(best), method="linear", simplex=True),
            evaluate=lambda recipe: -sum((float(recipe.params[f"weight[{k}]"]) - v) ** 2 for k, v in best.items()),
            objectives=["score"],
            sampler=sampler,
            evaluations=evaluations,
            storage=f"sqlite:///{tmp_path}/{folder}/study.db",
            name="simplex",
        )

    whole = until(20, "whole")
    until(13, "parts")
    assert [one.recipe for one in until(20, "parts").candidates()] == [one.recipe for one in whole.candidates()]
    assert len(whole.candidates()) == 20, "no merge is evaluated twice"
    for trial, candidate in zip(whole.optuna.get_trials(), whole.candidates(), strict=True):
        if candidate.anchor not in ("base", "task arithmetic 0.3"):
            assert trial.params == candidate.params and sum(trial.params.values()) == pytest.approx(1.0, abs=1e-6)
    assert max(one.scores["score"] for one in whole.candidates()) > (-0.004 if sampler == "mm-mo" else -0.1)


@pytest.mark.parametrize("sampler", ["map", "evo-merging"])
def test_a_sampler_that_would_ask_for_one_mixture_again_and_again_is_refused(sampler: str) -> None:
    space = mf.MergeSpace(["maths", "french"], method="linear", simplex=True)
    with pytest.raises(UserError, match="does not know weights that sum to one; these do: mm-mo"):
        mf.search(space=space, evaluate=scores, objectives=["maths"], sampler=sampler, storage="sqlite://", name="no")
