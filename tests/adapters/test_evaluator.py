"""One evaluation: one merge, the items that were asked for, scores with their standard errors, what it cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.language_model import (
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
)
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import EvaluationRequest, Evaluator

RECIPE = Recipe("task_arithmetic", {"adder": "adder"}, {"weight[adder]": 0.5}, "base")


class AddingModel:
    """Adds the numbers of a prompt, if they are below the limit; longer texts are less likely."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        sums = [[int(word) for word in request.prompt.split("+")] for request in requests]
        return [Generation(str(sum(numbers)) if max(numbers) < self.limit else "?", 3, "stop") for numbers in sums]

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return [LogLikelihood(-self.limit * len(one.continuation), len(one.continuation), False) for one in requests]


class AddingBackend:
    """A backend of one number: the weight is the limit up to which the model can add."""

    def __init__(self, delta_l1: float | None = 7.0) -> None:
        self.delta_l1 = delta_l1
        self.seconds = 0.25
        self.applied: list[float] = []
        self.open = 0

    def apply(self, recipe: Recipe) -> AddingBackend:
        self.applied.append(20 * float(recipe.params["weight[adder]"]))
        return self

    def __enter__(self) -> LanguageModel:
        self.open += 1
        return AddingModel(self.applied[-1])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.open -= 1


@pytest.fixture
def tasks(tmp_path: Path) -> list[JsonlTask]:
    def write(name: str, numbers: Sequence[int]) -> None:
        lines = [json.dumps({"prompt": f"{number} + 1", "answer": str(number + 1)}) for number in numbers]
        (tmp_path / name).write_text("\n".join(lines))

    write("search.jsonl", range(0, 16))
    write("report.jsonl", range(16, 20))
    read: Any = JsonlTask.read
    return [
        read("adding", "search.jsonl", "exact_match", report="report.jsonl", folder=tmp_path),
        read("text", "search.jsonl", "loss", report="report.jsonl", folder=tmp_path),
    ]


def test_scores_are_means_of_items_with_their_standard_errors(tasks: list[JsonlTask]) -> None:
    evaluator = TaskEvaluator(AddingBackend(), tasks)
    assert isinstance(evaluator, Evaluator)
    evaluation = evaluator.evaluate(RECIPE, EvaluationRequest(("adding", "text", "delta_l1")))
    items = evaluation.items["adding"]
    assert items.ids == tuple(item.id for item in tasks[0].items("search"))
    right = [float(int(item.prompt.split(" ")[0]) < 10) for item in tasks[0].items("search")]
    assert list(items.scores) == right
    assert evaluation.scores["adding"] == pytest.approx(10 / 16)
    assert evaluation.standard_errors["adding"] == pytest.approx(statistics.stdev(right) / 4)
    assert evaluation.scores["text"] == pytest.approx(10.0)  # a loss of the limit per character: minimised
    assert (evaluation.scores["delta_l1"], evaluation.standard_errors["delta_l1"]) == (7.0, 0.0)


def test_what_was_spent_is_counted_and_timed(tasks: list[JsonlTask]) -> None:
    evaluation = TaskEvaluator(AddingBackend(), tasks).evaluate(RECIPE, EvaluationRequest(("adding", "text")))
    answered = sum(len(f" {item.answers[0]}") for item in tasks[1].items("search"))
    assert evaluation.cost == {"items": 32, "requests": 32, "scored_tokens": answered, "generated_tokens": 48}
    assert evaluation.seconds["merge"] == 0.25
    assert evaluation.seconds["score"] == pytest.approx(evaluation.seconds["adding"] + evaluation.seconds["text"])


def test_only_what_an_objective_needs_is_scored_after_one_merge(tasks: list[JsonlTask]) -> None:
    backend = AddingBackend()
    evaluation = TaskEvaluator(backend, tasks).evaluate(RECIPE, EvaluationRequest(("adding",), split="report"))
    assert set(evaluation.scores) == set(evaluation.items) == {"adding"}
    assert evaluation.items["adding"].ids == tuple(item.id for item in tasks[0].items("report"))
    assert backend.applied == [10.0]


def test_a_failing_task_is_a_failed_candidate_and_frees_the_model(tasks: list[JsonlTask]) -> None:
    class Broken(AddingModel):
        def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
            raise ValueError("the model fell over")

        def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
            return [LogLikelihood(math.nan, 1, False) for _ in requests]

    class BrokenBackend(AddingBackend):
        def __enter__(self) -> LanguageModel:
            super().__enter__()
            return Broken(1)

    backend = BrokenBackend()
    evaluator = TaskEvaluator(backend, tasks)
    with pytest.raises(EvaluationError, match="task 'adding': ValueError: the model fell over") as raised:
        evaluator.evaluate(RECIPE, EvaluationRequest(("adding",)))
    assert raised.value.kind == "ValueError"
    with pytest.raises(EvaluationError, match="task 'text'") as not_finite:
        evaluator.evaluate(RECIPE, EvaluationRequest(("text",)))
    assert not_finite.value.kind == "not finite"
    assert backend.open == 0


def test_a_failing_merge_is_a_failed_candidate(tasks: list[JsonlTask]) -> None:
    class Full(AddingBackend):
        def __enter__(self) -> LanguageModel:
            raise MemoryError("no room")

    with pytest.raises(EvaluationError, match="merging: out of memory") as raised:
        TaskEvaluator(Full(), tasks).evaluate(RECIPE, EvaluationRequest(("adding",)))
    assert raised.value.kind == "out of memory"


def test_an_objective_that_nothing_scores_is_the_users_error(tasks: list[JsonlTask]) -> None:
    backend = AddingBackend(delta_l1=None)
    evaluator = TaskEvaluator(backend, tasks)
    with pytest.raises(UserError, match="did you mean 'adding'"):
        evaluator.evaluate(RECIPE, EvaluationRequest(("ading",)))
    assert backend.applied == []
    with pytest.raises(UserError, match="delta_l1"):
        evaluator.evaluate(RECIPE, EvaluationRequest(("adding", "delta_l1")))


def test_one_item_has_a_score_and_no_error(tmp_path: Path) -> None:
    """An error of NaN would reach the surrogate."""
    (tmp_path / "one.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}')
    task: Any = JsonlTask.read("one", "one.jsonl", "exact_match", report_fraction=0, folder=tmp_path)
    evaluation = TaskEvaluator(AddingBackend(), [task]).evaluate(RECIPE, EvaluationRequest(("one",)))
    assert evaluation.scores == {"one": 1.0} and evaluation.standard_errors == {}
