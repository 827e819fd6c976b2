"""Comparing methods without a search: the numbers of the table, what is reused, what is said of what cannot be done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.adapters.evaluator import LenientEvaluator
from mergefront.cli.application import cli
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest
from mergefront.optimizer.scores.objectives import Objective
from mergefront.results.comparison import Comparison, Row, share

SCORER = '''
from pathlib import Path
from mergefront.optimizer.scores.evaluation import Evaluation, ItemScores

def score(recipe):
    """Of 200 items an expert gets 60 % of its own task right and loses 5 % of the other, the base 30 % of both."""
    folder = Path(__file__).parent
    with (folder / "calls.txt").open("a") as calls:
        calls.write(f"{recipe.method} {' '.join(recipe.models)} {sorted(recipe.params.items())}\\n")
    if (folder / "dies").exists() and len((folder / "calls.txt").read_text().splitlines()) == 9:
        import os
        os._exit(9)
    if recipe.method == "wudi":
        raise ValueError("a merge of noise")
    weights = {name: recipe.params.get(f"weight[{name}]", 1.0) for name in recipe.models}
    tasks = {}
    for task in ("maths", "french"):
        others = sum(1 for name, weight in weights.items() if name != task and weight > 0)
        right = round(200 * (0.3 + 0.3 * weights.get(task, 0.0) - 0.05 * others))
        tasks[task] = ItemScores(tuple(map(str, range(200))), tuple(float(item < right) for item in range(200)))
    scores = {name: items.mean for name, items in tasks.items()}
    return Evaluation(scores, {name: items.standard_error for name, items in tasks.items()}, tasks, {"merge": 0.5})
'''
STUDY = """
study: skills
seed: 1
merge: {method: ties, models: [maths, french, law], space: {weight: [0, 1], density: [0.1, 1]}}
backend: {type: function, call: "compare_scorer:score"}
objectives: [maths, french]
search: {sampler: random, evaluations: 8}
"""
METHODS = ["task_arithmetic", "ties", "isotropic", "wudi", "slerp", "lora_cat"]


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    (tmp_path / "compare_scorer.py").write_text(SCORER)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def compare(path: Path, methods: list[str] | str | None = None, subsets: int = 0) -> Comparison:
    return mf.compare(path, methods=METHODS if methods is None else methods, subsets=subsets, progress=False)


def calls(path: Path) -> Counter[str]:
    return Counter((path.parent / "calls.txt").read_text().splitlines())


def row(found: Comparison, label: str) -> Row:
    return next(one for one in found.rows if one.label == label)


def test_scores_are_shares_of_the_experts_and_losses_are_against_the_base(study_file: Path) -> None:
    found = compare(study_file)
    whole, base, expert = row(found, "task arithmetic 1"), row(found, "base"), row(found, "expert maths")
    assert whole.scores == {"maths": 0.5, "french": 0.5}
    assert whole.by_expert == pytest.approx({"maths": 0.5 / 0.6, "french": 0.5 / 0.6})
    assert base.mean == pytest.approx(0.5) and expert.mean == pytest.approx((1 + 0.25 / 0.6) / 2)
    assert expert.forgets == pytest.approx(0.05 / 0.3) and whole.forgets == 0.0 == base.forgets
    assert whole.seconds == 0.5 and found.best_expert == "expert maths"
    assert whole.against_base.better == ("maths", "french") and whole.against_base.worse == ()
    assert whole.against_expert.better == ("french",) and whole.against_expert.worse == ("maths",)
    assert row(found, "expert law").against_base.worse == ("maths", "french")
    assert [one.label for one in found.merges][:3] == ["task arithmetic 1", "ties", "isotropic"]
    assert "merges beat the base beyond noise" in found.verdict and "task arithmetic 1" in found.verdict
    assert "it does not beat expert maths" in found.verdict
    told = {one.task: one for one in found.detectable}
    assert told["maths"].items == 200 and 0.02 < (told["maths"].alone or 0) < (told["maths"].corrected or 0) < 0.4


def test_who_violates_a_constraint_is_no_winner(study_file: Path) -> None:
    study_file.write_text(STUDY + "constraints: [maths <= 0.4]\n")
    found = compare(study_file, ["task_arithmetic"])
    assert row(found, "task arithmetic 1").violates == ("maths <= 0.4",)
    assert "the best of them is task arithmetic 0.5" in found.verdict
    done = CliRunner().invoke(cli, ["compare", str(study_file), "--methods", "task_arithmetic"])
    assert "task arithmetic 1 ✗" in done.stdout and "✗ violates maths <= 0.4" in done.stdout


def test_what_fails_and_what_cannot_be_done_is_named_with_its_reason(study_file: Path) -> None:
    found = compare(study_file)
    assert found.failed == {"wudi": "ValueError: a merge of noise"}
    assert set(found.left_out) == {"slerp", "lora_cat"} and "2 models, not 3" in found.left_out["slerp"]
    assert json.loads(json.dumps(found.to_json()))["not_in_mergefront"]["MergeBench (arXiv 2505.10833)"]


def test_subsets_count_how_often_a_method_beats_the_base(study_file: Path) -> None:
    found = compare(study_file, ["task_arithmetic"], subsets=4)
    shares = {one.label: one for one in found.shares}
    # maths + french beat the base with half of each, and only whole task vectors make up for law's losses.
    assert (shares["task arithmetic 1"].beats_base, shares["task arithmetic 1"].subsets) == (4, 4)
    assert shares["task arithmetic 0.3"].beats_base == 1
    assert shares["task arithmetic 1"].beats_best_expert == 2
    low, high = shares["task arithmetic 0.3"].interval
    assert low < 0.25 < high
    whole = next(row for row in found.rows if row.label == "task arithmetic 1")
    by_size = shares["task arithmetic 1"].by_size
    assert list(by_size) == [2, 3] and by_size[3] == whole.mean, "all three are one subset, the pairs the rest"
    assert compare(study_file, ["task_arithmetic"], subsets=4) == found
    assert max(calls(study_file).values()) == 1, "a subset of all experts is the merge of all experts"


def test_killed_in_the_middle_the_same_command_ends_in_the_same_table(study_file: Path, tmp_path: Path) -> None:
    whole = compare(study_file, subsets=2)
    expected = calls(study_file)
    for file in ("mergefront.db", "calls.txt"):
        (tmp_path / file).unlink()
    (tmp_path / "dies").touch()
    program = f"import mergefront as mf; mf.compare({str(study_file)!r}, methods={METHODS}, subsets=2, progress=False)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    killed = calls(study_file)
    assert sum(killed.values()) == 9
    (tmp_path / "dies").unlink()
    assert compare(study_file, subsets=2) == whole
    twice = calls(study_file) - expected
    assert sum(twice.values()) == 1, "only the evaluation that the kill cut off runs again"


def test_the_study_takes_over_what_its_comparison_knows_and_the_other_way_round(study_file: Path) -> None:
    compare(study_file, ["ties"])
    before = calls(study_file)
    study = mf.run(study_file, progress=False)
    anchors = study.anchors()
    new = calls(study_file) - before
    assert len(anchors) == 6 and sum(new.values()) == study.finished_count() - len(anchors)
    assert study.finished_count() == 8 and all(one.anchor is not None for one in study.candidates()[:6])
    assert [anchor.scores for anchor in anchors[:4]] == [
        {"maths": 0.3, "french": 0.3}, {"maths": 0.6, "french": 0.25},
        {"maths": 0.25, "french": 0.6}, {"maths": 0.25, "french": 0.25},
    ]  # fmt: skip
    done = sum(calls(study_file).values())
    assert len(mf.compare(study_file, methods=["ties"], progress=False).rows) == 7
    assert sum(calls(study_file).values()) == done


def test_a_comparison_of_a_study_that_ran_first_evaluates_no_anchor_again(study_file: Path) -> None:
    mf.run(study_file, progress=False)
    before = sum(calls(study_file).values())
    found = compare(study_file, ["isotropic", "ties"])
    assert sum(calls(study_file).values()) == before + 2 and len(found.rows) == 8


def test_more_methods_later_keep_what_is_there(study_file: Path) -> None:
    compare(study_file, ["ties"])
    before = sum(calls(study_file).values())
    found = compare(study_file, ["ties", "isotropic"])
    assert sum(calls(study_file).values()) == before + 1
    assert {"ties", "isotropic"} <= {one.label for one in found.merges}


def test_a_changed_space_of_the_study_is_the_same_comparison(study_file: Path) -> None:
    found = compare(study_file, ["ties"])
    study_file.write_text(STUDY.replace("method: ties", "method: [dare_ties, ties]").replace("random", "mm-mo"))
    assert compare(study_file, ["ties"]) == found


def test_other_commands_know_that_it_is_no_search(study_file: Path) -> None:
    compare(study_file, ["ties", "isotropic"])
    storage = ["--storage", f"sqlite:///{study_file.parent}/mergefront.db"]

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, [*arguments, *storage])
        return done.exit_code, done.output

    code, listed = run("studies", "--json")
    (entry,) = json.loads(listed)
    assert code == 0 and entry["name"] == "skills/compare" and entry["sampler"] is None
    assert "mergefront compare STUDY_FILE" in run("status", "skills/compare")[1]
    assert "isotropic" in run("front", "skills/compare")[1]
    assert run("resume", "skills/compare")[0] == 0
    code, said = run("resume", "skills/compare", "--evaluations", "50")
    assert code == 2 and "no budget to raise" in said
    study = mf.load_study("skills/compare", storage=storage[1])
    assert study.finished_count() == study.record.evaluations == 8


def test_rows_of_the_table_can_be_chosen_by_their_names(study_file: Path) -> None:
    found = compare(study_file, "task arithmetic 1, uniform average,base")
    labels = ["uniform average", "task arithmetic 0.3", "task arithmetic 0.5", "task arithmetic 1"]
    assert sorted(one.label for one in found.merges) == sorted(labels)


def test_progress_names_each_merge_as_the_table_does(study_file: Path) -> None:
    done = CliRunner().invoke(cli, ["compare", str(study_file), "--methods", "task_arithmetic"])
    assert "trial 6 task arithmetic 0.5: " in done.stderr and "trial 7 task arithmetic 1: " in done.stderr


def test_a_comparison_is_renamed_and_deleted_with_its_study(study_file: Path) -> None:
    storage = ["--storage", f"sqlite:///{study_file.parent}/mergefront.db"]

    def run(*arguments: str, answer: str | None = None) -> str:
        return CliRunner().invoke(cli, [*arguments, *storage], input=answer).output

    def names() -> list[str]:
        return [entry["name"] for entry in json.loads(run("studies", "--json"))]

    compare(study_file, ["ties"])
    mf.run(study_file, progress=False)
    run("rename", "skills", "mine")
    assert sorted(names()) == ["mine", "mine/compare"]
    said = run("delete", "mine", answer="y\n")
    assert "Delete study mine with 8 evaluations and mine/compare with 7 evaluations from" in said and names() == []


@pytest.mark.parametrize("width", ["80", "120"])
def test_the_table_fits_the_screen_and_ends_in_a_verdict(
    study_file: Path, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    done = CliRunner().invoke(cli, ["compare", str(study_file), "--methods", ",".join(METHODS)])
    assert done.exit_code == 0, done.output
    table = done.stdout.splitlines()
    assert max(map(len, table)) <= int(width) and not any("…" in line for line in table)
    assert "0.500▲" in done.stdout and "Localize-and-Stitch" in done.stdout
    assert "Take it: mergefront export skills/compare" in " ".join(line.strip() for line in table[-4:])
    assert ("0.5 s" in done.stdout) == (width == "120")


def test_a_wrong_method_is_one_line_with_the_nearest(study_file: Path) -> None:
    done = CliRunner().invoke(cli, ["compare", str(study_file), "--methods", "ties,isotropc"])
    assert done.exit_code == 2
    assert done.stderr.strip().splitlines() == [
        "Error: unknown merge method 'isotropc' (did you mean 'isotropic'?); base, experts, uniform average and "
        "task arithmetic 0.3 are in every comparison"
    ]
    assert not (study_file.parent / "mergefront.db").exists()


@pytest.mark.parametrize(
    ("direction", "score", "reference", "expected"),
    [
        ("maximize", 0.45, 0.6, 0.75),
        ("maximize", 0.0, 0.6, 0.0),
        ("maximize", 0.4, 0.0, None),
        ("minimize", 3.0, 2.4, 0.8),
        ("minimize", 0.0, 2.4, None),
        ("maximize", -1.5, -1.2, 0.8),
        ("minimize", -1.2, -1.5, 0.8),
        ("maximize", -0.1, 0.5, None),
    ],
)
def test_a_share_is_above_one_where_the_score_is_better(
    direction: str, score: float, reference: float, expected: float | None
) -> None:
    found = share(Objective("task", direction), score, reference)  # type: ignore[arg-type]
    assert found == (None if expected is None else pytest.approx(expected))


def test_what_a_backend_refuses_fails_that_merge_alone_but_for_sums_of_task_vectors() -> None:
    class Refusing:
        def evaluate(self, recipe: mf.Recipe, request: EvaluationRequest) -> Evaluation:
            raise mf.UserError("the server is no server")

    evaluator, request = LenientEvaluator(Refusing()), EvaluationRequest(("maths",))
    with pytest.raises(mf.EvaluationError, match="no server"):
        evaluator.evaluate(mf.Recipe("isotropic", {"a": "a"}, {}), request)
    with pytest.raises(mf.UserError, match="no server"):
        evaluator.evaluate(mf.Recipe("task_arithmetic", {"a": "a"}, {"weight": 1.0}), request)
