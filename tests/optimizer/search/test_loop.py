"""What a search does besides proposing: the anchor that needs scores, and what it says of itself while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mergefront as mf
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
