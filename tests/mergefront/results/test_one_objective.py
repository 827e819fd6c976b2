"""A study of one objective has a best, its interval and its history; nowhere a front of one or a hypervolume."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.cli.application import cli
from mergefront.optimizer.scores.comparison import mean_interval
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores
from mergefront.results.dashboard_view import explanations, plots
from mergefront.results.export import export_candidate
from mergefront.results.plots.picture import picture
from mergefront.results.report.contents import contents
from mergefront.results.report.page import page

BEST, RIGHT = 7, {0: 40, 1: 60, 2: 50, 3: 62, 4: 55, 5: 70, 6: 66, 7: 84, 8: 80, 9: 30}
"""The trial that is best, and how many of 100 items each trial gets right; the first five are anchors."""


def answered(right: int) -> Evaluation:
    items = ItemScores(tuple(map(str, range(100))), tuple(float(number < right) for number in range(100)))
    return Evaluation({"maths": items.mean}, {"maths": items.standard_error}, {"maths": items}, {"total": 1.0})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> mf.Study:
    scored = iter(RIGHT.values())
    return mf.search(
        space=mf.MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0, 1]}),
        evaluate=lambda recipe: answered(next(scored)), objectives=["maths"], sampler="random", evaluations=len(RIGHT),
        name="one", storage=f"sqlite:///{tmp_path_factory.mktemp('one')}/study.db",
    )  # fmt: skip


def said(study: mf.Study, *command: str) -> str:
    result = CliRunner().invoke(cli, [command[0], "one", "--storage", study.database.url, *command[1:]])
    assert result.exit_code == 0, result.output
    return result.output


def test_json_has_the_best_its_interval_and_the_history(study: mf.Study) -> None:
    content = json.loads(said(study, "front", "--json"))
    assert not {"front", "hypervolume"} & set(content)
    best = content["best"]
    assert (best["trial"], best["anchor"], best["scores"]) == (BEST, None, {"maths": 0.84})
    assert best["interval"] == pytest.approx(mean_interval([1.0] * 84 + [0.0] * 16))
    assert [step["trial"] for step in content["history"]] == [0, 1, 3, 5, BEST] and content["suggested"] == BEST
    assert study.best().number == BEST


def test_every_command_speaks_of_the_best(study: mf.Study) -> None:
    for text in (said(study, "front"), said(study, "resume")):
        assert "Best: trial 7, maths ↑ 0.840 (95 % interval 0.756 to 0.899)" in " ".join(text.split())
        assert "Suggested: trial 7, the best" in text
        rows = [
            line.split()[0] if line.split()[0] != "◆" else line.split()[1] for line in text.splitlines() if "±" in line
        ]
        assert [row for row in rows if row.isdecimal()][:2] == ["7", "5"], "the best merge and the one before it"
        assert not re.search("hypervolume|on the front|normalised", text)
    status = said(study, "status")
    assert "maths ↑ 0.840 (0.756 to 0.899), trial 7" in status and "hypervolume" not in status
    assert "hypervolume" not in json.loads(said(study, "status", "--json"))
    (row,) = json.loads(CliRunner().invoke(cli, ["studies", "--storage", study.database.url, "--json"]).stdout)
    assert "hypervolume" not in row


def test_the_page_the_card_the_dashboard_and_the_plot_too(study: mf.Study, tmp_path: Path) -> None:
    shown = re.sub(r"<script.*?</script>", "", page(contents(study)), flags=re.DOTALL)
    assert "<h2>History</h2>" in shown and "Best: trial 7" in shown and "<td>trial 5</td><td>0.700</td>" in shown
    assert not re.search("hypervolume|on the front|normalised|The front", shown, flags=re.IGNORECASE)
    card = (export_candidate(study, study.best(), tmp_path / "out", config_only=True) / "README.md").read_text()
    assert "it is the best." in card and not re.search("hypervolume|the front", card)
    assert set(plots(study)) == {"best-1"}
    trials = study.optuna.get_trials(deepcopy=False)
    note = explanations(study, trials, study.ledger.recipes())["dashboard:note_str:0"]
    assert "Best: trial 7" in note and "mergefront export one" in note and "hypervolume" not in note
    assert picture(study).title == "one: the best after 10 evaluations"
    assert {series.name for series in picture(study).series()} >= {"merge", "best merge", "suggested"}


def test_progress_shows_no_hypervolume(tmp_path: Path) -> None:
    (tmp_path / "scoring.py").write_text("def score(recipe):\n    return recipe.params.get('weight[a]', 0.5)\n")
    (tmp_path / "study.yaml").write_text(
        "study: one\nmerge: {method: task_arithmetic, models: [a, b], space: {weight: [0, 1]}}\n"
        "backend: {type: function, call: 'scoring:score'}\nobjectives: [maths]\n"
        "search: {sampler: random, evaluations: 8}\n"
    )
    result = CliRunner().invoke(cli, ["run", str(tmp_path / "study.yaml")])
    assert result.exit_code == 0 and "[8/8]" in result.stderr and "hypervolume" not in result.output
    assert "Best: trial" in result.stdout and "interval" not in result.stdout, "one number has no noise to speak of"
