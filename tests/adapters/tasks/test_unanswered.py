"""Items to which no usable answer comes: wrong where a metric has a wrong answer, counted, forgiven up to a share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.language_model import Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.remote.server_backend import AppliedOnServer
from mergefront.adapters.tasks.metrics.sandbox import missing_sandbox
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.cli.application import cli
from mergefront.cli.searching import finish
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest
from mergefront.optimizer.scores.outcomes import outcome_lines, outcome_text, reasons, total_outcomes
from mergefront.results.report.contents import contents
from mergefront.results.report.page import page

RECIPE = Recipe("task_arithmetic", {"x": "x"}, {"weight[x]": 0.5}, "base")


class Filtered:
    """Answers Paris, except where a prompt names what happens to it."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [self._answer(request.prompt) for request in requests]

    def _answer(self, prompt: str) -> Generation:
        if "filtered" in prompt:
            return Generation("", 0, "stop", unanswered="content filter")
        if "empty" in prompt:
            return Generation(" ", 1, "stop")
        return Generation("Paris", 1, "length" if "cut" in prompt else "stop", shortened="long" in prompt)

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return [LogLikelihood(-1.0, 1, False, shortened="long" in one.context) for one in requests]


class FilteredBackend:
    def apply(self, recipe: Recipe) -> AppliedOnServer:
        return AppliedOnServer(nullcontext(Filtered()))


def evaluate(folder: Path, metric: str, prompts: Sequence[str], **options: Any) -> Evaluation:
    return evaluator_of(folder, metric, prompts, **options).evaluate(RECIPE, EvaluationRequest(("t",)))


def evaluator_of(folder: Path, metric: str, prompts: Sequence[str], **options: Any) -> TaskEvaluator:
    row = {"answer": "Paris", "tests": "assert True", "choices": ["Paris", "Rome"]}
    rows = [{"prompt": prompt, **row} for prompt in prompts]
    if metric != "loglikelihood":
        rows = [{key: value for key, value in row.items() if key != "choices"} for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {"type": "jsonl", "path": "rows.jsonl", "metric": metric, "report_fraction": 0, **options}
    return TaskEvaluator(FilteredBackend(), [build_task("t", config, folder)])


def prompts(filtered: int, of: int = 10) -> list[str]:
    return [f"{number} {'filtered' if number < filtered else ''}" for number in range(of)]


@pytest.mark.parametrize("metric", ["exact_match", "f1", "code"])
def test_an_item_without_an_answer_is_wrong_and_counted(tmp_path: Path, metric: str) -> None:
    """One refused item of ten failed every candidate, and five of them ended the search."""
    if metric == "code" and missing_sandbox() is not None:
        pytest.skip("this kernel has no seccomp")
    # The prompt alone would pass the tests of code, if an item without an answer were run.
    texts = [f"# {prompt}\n" for prompt in prompts(1)] if metric == "code" else prompts(1)
    evaluation = evaluate(tmp_path, metric, texts, **({"stop": "#"} if metric == "code" else {}))
    scores = evaluation.items["t"].scores
    assert (sorted(scores)[0], evaluation.details["outcomes"]["t"]["unanswered"]) == (0.0, 1)
    if metric != "code":  # "Paris" is no program
        assert evaluation.scores["t"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("filtered", "most", "fails"), [(1, 0.1, False), (2, 0.1, True), (1, 0.0, True), (10, 1.0, False), (0, 0.0, False)]
)
def test_a_candidate_fails_above_the_share_that_the_task_forgives(
    tmp_path: Path, filtered: int, most: float, fails: bool
) -> None:
    if not fails:
        evaluation = evaluate(tmp_path, "exact_match", prompts(filtered), max_unanswered=most)
        assert evaluation.scores["t"] == pytest.approx(1 - filtered / 10)
        return
    with pytest.raises(EvaluationError, match=rf"{filtered} of 10 items .*content filter: {filtered}") as raised:
        evaluate(tmp_path, "exact_match", prompts(filtered), max_unanswered=most)
    assert raised.value.kind == "unanswered"


@pytest.mark.parametrize("metric", ["output_tokens", "latency", "own_metric_unanswered:length"])
def test_a_metric_without_a_wrong_answer_fails_at_the_first(tmp_path: Path, metric: str) -> None:
    """A missing answer is short and quick: the best of all."""
    (tmp_path / "own_metric_unanswered.py").write_text("def length(item, text):\n    return len(text)\n")
    with pytest.raises(EvaluationError, match="content filter") as raised:
        evaluate(tmp_path, metric, prompts(1))
    assert raised.value.kind == "unanswered"


def test_a_metric_of_ones_own_may_say_what_a_missing_answer_scores(tmp_path: Path) -> None:
    (tmp_path / "own_metric_forgiving.py").write_text(
        "def length(item, text):\n    return len(text)\nlength.unanswered = -1\n"
    )
    assert -1.0 in evaluate(tmp_path, "own_metric_forgiving:length", prompts(1)).items["t"].scores


def test_every_outcome_of_an_item_is_counted_by_task(tmp_path: Path) -> None:
    asked = [*prompts(1), "empty", "also empty", "cut", "too long"]
    assert evaluate(tmp_path, "exact_match", asked).details["outcomes"]["t"] == {
        "asked": 14,
        "unanswered": 1,
        "unanswered: content filter": 1,
        "empty": 2,
        "cut": 1,
        "shortened": 1,
    }
    likelihoods = evaluate(tmp_path, "loglikelihood", ["long", "short"]).details["outcomes"]["t"]
    assert likelihoods == {"asked": 2, "shortened": 1}
    assert evaluate(tmp_path, "exact_match", prompts(0)).details["outcomes"] == {"t": {"asked": 10}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["long", "b"], "1 of 2 prompts were longer than the model reads"),
        (["empty", "also empty"], "2 of 2 answers were empty"),
        (["empty", "b"], None),
        (["cut", "cut too"], None),
        (prompts(1), "1 of 10 items had no usable answer (content filter: 1)"),
    ],
)
def test_a_run_is_told_once_of_what_spoils_a_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: list[str], said: str | None
) -> None:
    evaluator = evaluator_of(tmp_path, "exact_match", asked)
    for _ in range(2):
        evaluator.evaluate(RECIPE, EvaluationRequest(("t",)))
    lines = [record.getMessage() for record in caplog.records]
    assert (lines == []) if said is None else (len(lines) == 1 and lines[0].startswith("task t: ") and said in lines[0])


def test_the_outcomes_of_a_search_are_those_of_its_evaluations(tmp_path: Path) -> None:
    evaluations = [evaluate(tmp_path, "exact_match", prompts(1)) for _ in range(3)]
    counts = total_outcomes(evaluations)["t"]
    assert (outcome_text(counts), reasons(counts)) == ("3 of 30 items had no usable answer", "content filter: 3")
    assert outcome_lines(evaluations) == ["t: 3 of 30 items had no usable answer (content filter: 3)"]
    others = [Evaluation({"t": 1.0}), Evaluation({"t": 1.0}, details={"outcomes": {"t": 3}})]
    assert outcome_text({"asked": 5}) == "" and outcome_lines(others) == []


def test_run_status_and_report_say_what_happened_to_items(tmp_path: Path) -> None:
    """Who reads the scores alone takes prompts without their question, or refusals, for a weak merge."""
    study = mf.search(
        space=mf.MergeSpace(["x"], method="task_arithmetic", parameters={"weight": [0, 1]}),
        evaluate=evaluator_of(tmp_path, "exact_match", [*prompts(1), "long", "cut"]),
        objectives=["t"],
        sampler="random",
        evaluations=4,
        storage=f"sqlite:///{tmp_path}/study.db",
        name="s",
    )
    count, of = study.ledger.evaluation_count(), 12 * study.ledger.evaluation_count()
    said = (
        f"t: {count} of {of} items had no usable answer; {count} of {of} answers were cut off at max_new_tokens; "
        f"{count} of {of} prompts were longer than the model reads and lost their beginning (content filter: {count})"
    )
    arguments = ["status", "s", "--storage", str(tmp_path / "study.db")]
    assert f"items         {said}" in CliRunner().invoke(cli, arguments).stdout
    facts = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert facts["outcomes"]["t"] == {
        "asked": of, "unanswered": count, "unanswered: content filter": count, "cut": count, "shortened": count
    }  # fmt: skip
    text = page(contents(study))
    assert "What happened to items" in text and f"{count} (content filter: {count})" in text


def test_the_end_of_a_run_says_what_happened_to_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = mf.search(
        space=mf.MergeSpace(["x"], method="task_arithmetic", parameters={"weight": [0, 1]}),
        evaluate=evaluator_of(tmp_path, "exact_match", ["cut", "b"]),
        objectives=["t"],
        sampler="random",
        evaluations=3,
        storage=f"sqlite:///{tmp_path}/study.db",
        name="s",
    )
    finish(study)
    assert "Items of task t: 3 of 6 answers were cut off at max_new_tokens." in capsys.readouterr().err


@pytest.mark.parametrize("most", [-0.1, 1.1, "few", True])
def test_the_share_is_checked(tmp_path: Path, most: object) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}')
    config = {"type": "jsonl", "path": "rows.jsonl", "metric": "exact_match", "max_unanswered": most}
    (problem,) = problems_of(config, tmp_path)
    assert "max_unanswered" in problem and "[0, 1]" in problem
