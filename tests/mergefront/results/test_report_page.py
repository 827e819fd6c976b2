"""The report page: one file, everything in it, nothing loaded from elsewhere, no claim that the items do not carry."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.comparison import mean_interval
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores
from mergefront.results.coefficient_importance import importances
from mergefront.results.plots.picture import hypervolumes
from mergefront.results.report.contents import contents
from mergefront.results.report.page import page, write_report

NAMES = ("maths", "french")


class Fading:
    """Each expert's own task gets better with its weight; items are right up to a level."""

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        weights = {name: float(recipe.params[f"weight[{name}]"]) for name in NAMES}
        items = {}
        for name in NAMES:
            other = next(one for one in NAMES if one != name)
            level = 0.4 + 0.5 * weights[name] - 0.2 * weights[other] ** 2
            ids = tuple(f"{name}{number}" for number in range(150))
            items[name] = ItemScores(ids, tuple(float((number * 37) % 150 < 150 * level) for number in range(150)))
        return Evaluation(
            {name: one.mean for name, one in items.items()},
            {name: one.standard_error for name, one in items.items()},
            items,
            seconds={"total": 2.0},
            cost={"items": 300.0},
        )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> mf.Study:
    folder = tmp_path_factory.mktemp("page")
    space = MergeSpace(NAMES, method="task_arithmetic", parameters={"weight": [0, 1]})
    return mf.search(
        space=space,
        evaluate=Fading(),
        objectives=list(NAMES),
        sampler="random",
        evaluations=18,
        storage=f"sqlite:///{folder}/study.db",
        name="<b>page</b>",
    )


def test_the_page_needs_nothing_else_and_names_are_text(study: mf.Study, tmp_path: Path) -> None:
    text = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    without_plotly = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!data:)', without_plotly)
    assert "<b>page</b>" not in without_plotly and "&lt;b&gt;page&lt;/b&gt;" in without_plotly
    for heading in ("Result", "The front", "Scores", "Against the baselines", "Recipes", "Cost", "Hypervolume"):
        assert heading in without_plotly
    assert "data:image/png;base64," in without_plotly


def test_every_front_member_has_its_recipe_and_its_comparisons(study: mf.Study) -> None:
    shown = contents(study)
    text = page(shown)
    assert shown.front, "the example must have merges on its front"
    for candidate in shown.front:
        assert f"Trial {candidate.number}: task_arithmetic" in text
    assert text.count("merge_method: task_arithmetic") == len(shown.front)
    for baseline in ("uniform average", "task arithmetic 0.3", "(best expert)"):
        assert text.count(f"<td>{baseline}") + text.count(f"{baseline}</td>") >= len(shown.front)
    assert "These" not in shown.warnings and any("optimised on" in line for line in shown.warnings)


def test_hypervolume_never_falls_and_ends_at_the_studys(study: mf.Study) -> None:
    values = [value for _, value in hypervolumes(study)]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(values))
    assert values[-1] == pytest.approx(study.hypervolume())
    items = f"{300 * len({one.recipe.digest for one in study.candidates()}):,}"
    assert f"<td>items answered</td><td>{items} of {items} (100 %)</td>" in page(contents(study))


def test_importances_find_the_coefficient_that_decides(study: mf.Study) -> None:
    found = importances(study)
    assert set(found) == set(NAMES)
    assert found["maths"]["weight[maths]"] > found["maths"]["weight[french]"]
    assert sum(found["french"].values()) == pytest.approx(1)


def test_a_page_is_refused_where_it_cannot_be_written(study: mf.Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.html"):
        write_report(study, tmp_path / "report.pdf")
    with pytest.raises(UserError, match="does not exist"):
        write_report(study, tmp_path / "nowhere" / "report.html")


def test_intervals_keep_a_width_where_all_items_agree() -> None:
    low, high = mean_interval([1.0] * 20)
    assert high == 1.0 and 0.8 < low < 0.9
    low, high = mean_interval([0.0, 1.0] * 50)
    assert (low, high) == pytest.approx((0.404, 0.596), abs=0.001)
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=0.001)
