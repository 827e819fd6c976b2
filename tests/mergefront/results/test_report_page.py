"""The report page: one file, everything in it, nothing loaded from elsewhere, no claim that the items do not carry."""

from __future__ import annotations

import base64
import re
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.comparison import mean_interval
from mergefront.optimizer.scores.differences import scored_difference
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores
from mergefront.optimizer.scores.power import detectable_by_mcnemar
from mergefront.results.coefficient_importance import importances
from mergefront.results.plots.picture import hypervolumes, picture
from mergefront.results.report.contents import contents
from mergefront.results.report.detectable import detectable_json
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
    assert not re.search(r'(src|href)="(?!data:|#)', without_plotly)
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
    for file, encoded in re.findall(r'download="(.*?)" href="data:text/yaml;base64,(.*?)"', text):
        assert "merge_method" in base64.b64decode(encoded).decode() and file.endswith(".yaml")
    for baseline in ("uniform average", "task arithmetic 0.3", "(best expert)"):
        assert text.count(f"<td>{baseline}") + text.count(f"{baseline}</td>") >= len(shown.front)
    assert "These" not in shown.warnings and any("optimised on" in line for line in shown.warnings)


def test_the_suggested_merge_comes_first_then_the_best_mean(study: mf.Study) -> None:
    """Twenty rows in the order of their numbers hide the one that matters."""
    shown = contents(study)
    rows = cells_of(page(shown), "Scores")
    suggested = study.suggested()
    assert suggested is not None and rows[0][0] == f"trial {suggested.number} (suggested)"
    means = [float(row[-2]) for row in rows[1:]]
    assert means == sorted(means, reverse=True) and len(rows) == len(shown.rows)
    shares = [float(share) for share in re.findall(r"--share: ([0-9.]+)", page(shown))]
    assert shares and all(0 <= share <= 1 for share in shares)


def test_hypervolume_never_falls_and_ends_at_the_studys(study: mf.Study) -> None:
    values = [value for _, value in hypervolumes(study)]
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(values))
    assert values[-1] == pytest.approx(study.hypervolume())
    items = f"{300 * len({one.recipe.digest for one in study.candidates()}):,}"
    assert f"<td>items answered</td><td>{items} of {items} (100 %)</td>" in page(contents(study))


def test_importances_find_the_coefficient_that_decides(study: mf.Study) -> None:
    found = importances(study).shares
    assert set(found) == set(NAMES)
    assert found["maths"]["weight[maths]"] > found["maths"]["weight[french]"]
    assert sum(found["french"].values()) == pytest.approx(1)


def test_importances_of_many_trials_are_from_some_of_them_and_say_so(study: mf.Study) -> None:
    whole, drawn = importances(study), importances(study, most=10)
    assert whole.trials == whole.inside == drawn.inside > drawn.trials == 10
    assert drawn == importances(study, most=10), "the page must say the same when it is written again"
    assert drawn.basis == f"10 of the {drawn.inside} trials inside the space, drawn at random"
    assert whole.basis == "the trials inside the space" and whole.basis in page(contents(study))


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


def cells_of(text: str, section: str) -> list[list[str]]:
    """The table rows of a section, cell by cell, as HTML."""
    part = text.split(f"<h2>{section}</h2>", 1)[1].split("</section>", 1)[0]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", part, flags=re.DOTALL)
    return [found for row in rows if (found := re.findall(r"<td.*?>(.*?)</td>", row, flags=re.DOTALL))]


def test_a_cell_is_coloured_by_the_p_value_that_is_printed_in_it(study: mf.Study) -> None:
    """Red cells once said p = 1.000: coloured by one p-value, printed with another."""
    kinds = set()
    for row in cells_of(page(contents(study)), "Against the baselines"):
        for cell in row[2:-1]:
            kind = "better" if "<b>" in cell else "worse" if 'class="worse"' in cell else "neither"
            p = 0.0 if "&lt; 0.001" in cell else float(cell.split("p = ")[1].split("<")[0])
            assert (p < 0.05) == (kind != "neither") and ("+" in cell) >= (kind == "better"), cell
            kinds.add(kind)
    assert kinds == {"better", "worse", "neither"}


def test_the_best_anchor_is_one_in_headline_table_and_verdict(study: mf.Study) -> None:
    shown = contents(study)
    text = page(shown)
    assert shown.judged is not None
    best = shown.judged.best_anchor
    assert f"the best anchor, {best}." in text
    labelled = {row[1] for row in cells_of(text, "Against the baselines") if "best anchor" in row[1]}
    assert {label.split(" (best anchor")[0] for label in labelled} == {best}
    means = {row[0]: float(row[-2]) for row in cells_of(text, "Scores")}
    assert max((name for name in means if not name.startswith("trial")), key=means.__getitem__) == best


def test_who_beats_whom_follows_from_the_table(study: mf.Study) -> None:
    """Better somewhere and worse nowhere: one meaning of "beats" on the whole page."""
    shown = contents(study)
    text = page(shown)
    assert shown.judged is not None
    for merge, against, *cells, _ in cells_of(text, "Against the baselines"):
        anchor = against.split(" (best")[0]
        beaten = any("<b>" in cell for cell in cells) and not any("worse" in cell for cell in cells)
        said = {f"trial {match.merge}" for match in shown.judged.beaten_by(anchor)}
        assert beaten == (merge in said), (merge, anchor)


def test_a_report_on_report_items_draws_these_and_says_so(tmp_path: Path) -> None:
    """A plot of the items that the search optimised on, in a report of others, shows scores that nobody reports."""
    evaluator = Fading()
    study = mf.search(
        space=MergeSpace(NAMES, method="task_arithmetic", parameters={"weight": [0, 1]}), evaluate=evaluator,
        objectives=list(NAMES), sampler="random", evaluations=12, name="fresh",
        storage=f"sqlite:///{tmp_path}/study.db",
    )  # fmt: skip
    for candidate in (*study.anchors(), *study.front()):
        found = evaluator.evaluate(candidate.recipe, EvaluationRequest(NAMES, "report"))
        worse = {name: ItemScores(one.ids, (0.0,) * 15 + one.scores[15:]) for name, one in found.items.items()}
        means = {name: one.mean for name, one in worse.items()}
        study.ledger.record(candidate.recipe, Evaluation(means, found.standard_errors, worse), "report")
    shown = contents(study)
    drawn = picture(study, shown.rows)
    assert "report items" in drawn.title
    assert {point.number for point in drawn.points} == set(shown.rows)
    for point in drawn.points:
        assert point.scores == pytest.approx([shown.rows[point.number].scores[name] for name in NAMES], abs=1e-9)
    text = page(shown)
    front = text.split("<h2>The front</h2>", 1)[1].split("</section>", 1)[0]
    assert "On the report items" in front and '"dominated merge"' not in front
    assert "On the report items its weakest is" in text.split("<h2>The front</h2>", 1)[0]


def test_the_smallest_difference_that_the_items_would_show_is_said_everywhere(study: mf.Study) -> None:
    """A difference that 150 items cannot show would be read as equality."""
    shown = contents(study)
    assert shown.judged is not None
    differences = [
        scored_difference(study.objectives[0], shown.rows[merge], shown.rows[anchor])
        for merge in shown.judged.merges
        for anchor in shown.judged.anchors.values()
    ]
    shares = sorted(sum(one.discordant) / 150 for one in differences if one.discordant is not None)
    assert len(shares) == len(differences), "right-or-wrong items have the exact test"
    expected = detectable_by_mcnemar(150, shares[(len(shares) - 1) // 2])
    maths = detectable_json(study)["detectable"]["tasks"][0]
    assert (maths["task"], maths["items"], maths["alone"]) == ("maths", 150, expected)
    assert maths["corrected"] > maths["alone"] > 0.02
    assert cells_of(page(shown), "What the items can tell")[0][-2:] == [
        f"{maths['alone']:.3f}",
        f"{maths['corrected']:.3f}",
    ]
    said = CliRunner().invoke(cli, ["front", study.name, "--storage", study.database.url])
    assert f"maths {maths['alone']:.3f}" in said.output
