"""The merge that is suggested keeps every skill it can, and nothing is suggested that nobody should release."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.optimizer.scores.objectives import Objective
from mergefront.optimizer.scores.suggestion import left_at_worst

ITEMS = 200
Rates = Sequence[float]
BASE, EXPERTS = (0.3, 0.3, 0.3), [(0.9, 0.0, 0.0), (0.0, 0.9, 0.0), (0.0, 0.0, 0.9)]
AVERAGES = [(0.35, 0.35, 0.35)] * 2
CORNER, BALANCED = (0.9, 0.9, 0.1), (0.55, 0.6, 0.5)


def answered(rates: Rates, names: Sequence[str], exact: Mapping[str, float] | None = None) -> Evaluation:
    """Items that are right up to a rate, the same ones for equal rates, and numbers without noise."""
    items = {
        name: ItemScores(tuple(map(str, range(ITEMS))), tuple(float(n < rate * ITEMS) for n in range(ITEMS)))
        for name, rate in zip(names, rates, strict=True)
    }
    errors = {name: one.standard_error for name, one in items.items()}
    return Evaluation({**{name: one.mean for name, one in items.items()}, **(exact or {})}, errors, items)


def searched(folder: Path, merges: Sequence[Rates], *, base: Rates = BASE, averages: Sequence[Rates] = AVERAGES,
             distances: Sequence[float] = (), constraints: Sequence[str] = ()) -> mf.Study:  # fmt: skip
    """A study whose anchors (base, experts, uniform average, task arithmetic) and then merges score as given."""
    rows = [base, *EXPERTS, *averages, *merges]
    names = ["maths", "french", "code"]
    scored = iter(rows)
    exact = iter(distances)

    def evaluate(recipe: mf.Recipe) -> Evaluation:
        return answered(next(scored), names, {"delta_l1": next(exact)} if distances else None)

    objectives: list[object] = [*names, {"name": "delta_l1", "direction": "minimize"}] if distances else [*names]
    return mf.search(
        space=mf.MergeSpace(["a", "b", "c"], method="task_arithmetic", parameters={"weight": [0, 1]}),
        evaluate=evaluate, objectives=objectives, constraints=constraints, sampler="random",
        evaluations=len(rows), name="skills", storage=f"sqlite:///{folder}/study.db",
    )  # fmt: skip


def call(study: mf.Study, command: str, *arguments: object) -> Result:
    return CliRunner().invoke(cli, [command, "skills", "--storage", study.database.url, *map(str, arguments)])


def exported(study: mf.Study, out: Path, *choice: object) -> int:
    """The trial whose recipe an export writes."""
    result = call(study, "export", *choice, "--out", out, "--config-only")
    assert result.exit_code == 0, result.output
    recipe = mf.Recipe.from_json(json.loads((out / "recipe.json").read_text()))
    return next(candidate.number for candidate in study.candidates() if candidate.recipe == recipe)


def test_the_suggested_merge_keeps_every_skill_and_is_what_export_takes(tmp_path: Path) -> None:
    """The knee is the largest sum: it gives a skill up, and was called the best balance."""
    study = searched(tmp_path, [CORNER, BALANCED], base=(0.3, 0.3, 0.1))
    assert not any(against for _, against in study.objections(study.merges())), "the corner loses nothing to the base"
    corner, balanced = 6, 7
    assert study.knee().number == corner
    suggested = study.suggested()
    assert suggested is not None and suggested.number == balanced
    assert json.loads(call(study, "front", "--json").stdout)["suggested"] == balanced
    assert exported(study, tmp_path / "plain") == exported(study, tmp_path / "named", "--suggested") == balanced
    assert exported(study, tmp_path / "knee", "--knee") == corner
    shown = " ".join(call(study, "front").stdout.split())
    assert f"Suggested: trial {balanced}." in shown and f"◆ {balanced}" in shown and "Warning" not in shown
    card = (tmp_path / "plain" / "README.md").read_text()
    assert f"Suggested: trial {balanced}" in card and "Suggested" not in (tmp_path / "knee" / "README.md").read_text()


def test_a_merge_that_is_left_at_the_worst_anchors_level_is_warned_of(tmp_path: Path) -> None:
    study = searched(tmp_path, [(0.9, 0.9, 0.0)], base=(0.3, 0.3, 0.0), averages=[(0.2, 0.2, 0.01)] * 2)
    suggested = study.suggested()
    assert suggested is not None and suggested.number == 6 and study.left_at_worst(suggested) == ["code"]
    said = "Warning: trial 6 leaves code at the level of the worst anchor."
    assert said in " ".join(call(study, "front").stdout.split())
    result = call(study, "export", "--knee", "--out", tmp_path / "out", "--config-only")
    assert said in result.stderr and said in (tmp_path / "out" / "README.md").read_text()


def test_nothing_is_suggested_that_loses_to_the_base_and_that_is_said(tmp_path: Path) -> None:
    study = searched(tmp_path, [CORNER, (0.9, 0.1, 0.8)], averages=[(0.35, 0.35, 0.1)] * 2)
    assert study.suggested() is None
    assert json.loads(call(study, "front", "--json").stdout)["suggested"] is None
    shown = " ".join(call(study, "front").stdout.split())
    assert "No merge is suggested" in shown and "lose to the base in code beyond noise" in shown
    for choice in ((), ("--suggested",)):
        result = call(study, "export", *choice, "--out", tmp_path / "out", "--config-only")
        said = " ".join(result.stderr.split())
        assert result.exit_code == 2 and not (tmp_path / "out").exists()
        assert "No merge is suggested" in said and "--knee (trial 6, " in said and "on the front: 0, 3, 6, 7)" in said
    assert exported(study, tmp_path / "out", "--trial", 7) == 7
    assert "Warning: trial 7 loses to the base in french beyond noise." in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_that_an_anchor_beats_is_not_suggested(tmp_path: Path) -> None:
    """One lucky item more in one skill keeps it on the front; an average that anybody can make is far better."""
    study = searched(tmp_path, [(0.71, 0.4, 0.4)], averages=[(0.7, 0.7, 0.7), (0.4, 0.4, 0.4)])
    assert {candidate.number for candidate in study.front()} >= {4, 6}
    ((_, against),) = study.objections([study.candidates()[6]])
    assert against.beaten_by == ("uniform average",) and not against.lost
    suggested = study.suggested()
    assert suggested is not None and suggested.anchor == "uniform average"


def test_an_anchor_that_violates_a_constraint_keeps_nobody_from_being_suggested(tmp_path: Path) -> None:
    averages = [(0.7, 0.7, 0.7), (0.9, 0.4, 0.4)]
    study = searched(tmp_path, [(0.6, 0.45, 0.45)], averages=averages, constraints=["maths <= 0.65"])
    suggested = study.suggested()
    assert suggested is not None and suggested.number == 6


def test_where_all_anchors_are_alike_no_merge_is_at_the_level_of_the_worst() -> None:
    names = ["maths", "french", "code"]
    objectives = [Objective(name) for name in names]
    anchors = [answered((0.5, 0.9, 0.1), names), answered((0.5, 0.1, 0.9), names)]
    assert left_at_worst(objectives, answered((0.5, 0.1, 0.5), names), anchors) == ["french"]


def test_the_report_items_can_refuse_a_suggestion(tmp_path: Path) -> None:
    study = searched(tmp_path, [BALANCED, (0.5, 0.5, 0.45)])
    first = study.suggested()
    assert first is not None and first.number == 6
    on_report = {0: BASE, 6: (0.6, 0.6, 0.1), 7: (0.5, 0.5, 0.5)}
    for candidate in study.candidates():
        if candidate.number in on_report:
            found = answered(on_report[candidate.number], ["maths", "french", "code"])
            study.ledger.record(candidate.recipe, found, "report")
    assert [c.number for c, against in study.objections(study.merges()) if against.lost] == [6]


def test_distance_from_the_base_is_no_loss_to_it(tmp_path: Path) -> None:
    """Every merge has one, and the study of the README minimises it."""
    study = searched(tmp_path, [BALANCED], distances=[0, 3, 3, 3, 1, 3, 0.5])
    suggested = study.suggested()
    assert suggested is not None and suggested.number == 6


@pytest.mark.parametrize(("merges", "averages"), [([BALANCED], AVERAGES), ([CORNER], [(0.35, 0.35, 0.1)] * 2)])
def test_what_a_search_says_to_do_next_takes_the_suggestion_or_the_knee(
    tmp_path: Path, merges: Sequence[Rates], averages: Sequence[Rates]
) -> None:
    study = searched(tmp_path, merges, averages=averages)
    taken = (study.suggested() or study.knee()).number
    choice = f"--trial {taken} --config-only --out merged"
    result = call(study, "resume")
    assert result.exit_code == 0, result.output
    assert f"mergefront export skills --storage {study.database.url} {choice}" in result.stderr
    assert "--knee" not in result.output
