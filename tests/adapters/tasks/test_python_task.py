"""A function of one's own scores the live model, whatever it is; what goes wrong in it is a failed candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.tasks.python_task import PythonTask
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.differences import scored_difference
from mergefront.optimizer.scores.evaluation import EvaluationRequest
from mergefront.optimizer.scores.objectives import Objective

RECIPE = Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 0.5}, "base")
TEXTS = ["The merge of two experts", "Sort 3 1 2", "naïve", "A", "B"]


@pytest.fixture
def classifier(tokenizer: Any) -> LocalBackend:
    """A tiny BERT with a head of two classes, and an expert of it."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.5, **sizes)
        base, expert = BertForSequenceClassification(config), BertForSequenceClassification(config)
    return LocalBackend(base, base.state_dict(), {"a": expert.state_dict()}, tokenizer=tokenizer)


def certainty(model: Any, tokenizer: Any) -> dict[str, float]:
    return {text: float(model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 0]) for text in TEXTS}


def evaluate(backend: LocalBackend, function: Callable[..., Any], split: str = "search", **options: Any) -> Any:
    task = PythonTask("t", function, "mine:function", **options)
    return TaskEvaluator(backend, [task]).evaluate(RECIPE, EvaluationRequest(("t",), split))


def test_the_function_is_handed_the_merge_and_its_tokenizer(classifier: LocalBackend, tokenizer: Any) -> None:
    with classifier.apply(RECIPE) as merged, torch.no_grad():
        expected = certainty(merged.model, tokenizer)
    found = evaluate(classifier, certainty)
    assert dict(zip(found.items["t"].ids, found.items["t"].scores, strict=True)).items() <= expected.items()
    assert found.scores["t"] == pytest.approx(sum(found.items["t"].scores) / len(found.items["t"].scores))


def test_search_and_report_items_share_nothing_and_are_all(classifier: LocalBackend) -> None:
    search, report = (evaluate(classifier, certainty, split).items["t"].ids for split in ("search", "report"))
    assert set(search) | set(report) == set(TEXTS) and not set(search) & set(report)
    assert set(evaluate(classifier, certainty, report_fraction=0).items["t"].ids) == set(TEXTS)


def leaves(_: Any, __: Any) -> Any:
    raise SystemExit(3)


def trips(_: Any, __: Any) -> Any:
    return {}["nothing"]


@pytest.mark.parametrize(
    "function, kind",
    [
        (leaves, "SystemExit"),
        (trips, "KeyError"),
        (lambda _, __: None, "wrong type"),
        (lambda _, __: {}, "wrong type"),
        (lambda _, __: 0.5, "wrong type"),
        (lambda _, __: {"x": "much", "y": 1.0}, "not a number"),
        (lambda _, __: {"x": float("nan"), "y": 1.0}, "not finite"),
        (lambda _, __: {1: 0.5, "1": 0.5}, "other items"),
    ],
)
def test_what_goes_wrong_in_the_function_is_a_failed_candidate(
    classifier: LocalBackend, function: Callable[..., Any], kind: str
) -> None:
    with pytest.raises(EvaluationError) as failure:
        evaluate(classifier, function)
    assert failure.value.kind == kind and "task 't'" in str(failure.value)


def test_right_or_wrong_items_of_a_function_are_compared_by_the_exact_test(classifier: LocalBackend) -> None:
    """Eight of twenty that only one merge has right are a coin flip's p-value, not a t-test's."""
    answers = iter([{str(n): n % 5 for n in range(20)}, {str(n): float(n % 5 > 2) for n in range(20)}])
    binary = ({item: min(score, 1) for item, score in scores.items()} for scores in answers)
    task = PythonTask("t", lambda _, __: next(binary), "mine:function", direction="minimize", report_fraction=0)
    evaluator = TaskEvaluator(classifier, [task])
    first, second = (evaluator.evaluate(RECIPE, EvaluationRequest(("t",), "search")) for _ in range(2))
    found = scored_difference(Objective("t", "minimize"), first, second)
    assert found.discordant == (0, 8) and found.p_value == pytest.approx(2 * 0.5**8)


def test_a_function_that_scores_other_items_than_before_fails(classifier: LocalBackend) -> None:
    """Means over other items cannot be compared."""
    answers = iter([{"x": 1.0, "y": 0.0}, {"x": 1.0, "z": 0.0}])
    evaluator = TaskEvaluator(classifier, [PythonTask("t", lambda _, __: next(answers), "mine:function")])
    evaluator.evaluate(RECIPE, EvaluationRequest(("t",), "search"))
    with pytest.raises(EvaluationError, match="other items than for the merge before, such as 'y'"):
        evaluator.evaluate(RECIPE, EvaluationRequest(("t",), "search"))


@pytest.mark.parametrize("change", [lambda model: model.double(), lambda model: model.classifier.bias.add_(1)])
def test_a_function_that_changes_the_weights_ends_the_search(
    classifier: LocalBackend, change: Callable[[Any], Any]
) -> None:
    """The next merge would be written into weights that nobody asks any more."""

    def function(model: Any, _: Any) -> dict[str, float]:
        change(model)
        return {"x": 1.0, "y": 1.0}

    with pytest.raises(UserError, match="changed the model's"):
        evaluate(classifier, function)


def test_a_model_that_continues_no_text_says_which_task_scores_it(classifier: LocalBackend, tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"text": "A"}\n{"text": "B"}\n')
    task = build_task("t", {"type": "jsonl", "path": "items.jsonl", "metric": "loss"}, tmp_path)
    with pytest.raises(UserError, match="BertForSequenceClassification continues no text; score it with a task of"):
        TaskEvaluator(classifier, [task]).evaluate(RECIPE, EvaluationRequest(("t",), "search"))


def test_everything_wrong_with_an_entry_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(model, processor):\n    return {'x': 1.0}\n")
    sound = {"type": "python", "call": "mine:score", "direction": "minimize"}
    assert problems_of(sound, tmp_path) == []
    assert build_task("t", sound, tmp_path).direction == "minimize"
    assert problems_of({**sound, "files": "gone.csv"}, tmp_path) == ["files: gone.csv: there is no such file"]
    (wrong,) = problems_of({**sound, "call": "mine:scores"}, tmp_path)
    assert "no function 'scores'" in wrong and "score" in wrong
    problems = problems_of({"type": "python", "call": "mine", "direction": "up", "metric": "loss"}, tmp_path)
    assert [problem.split()[0] for problem in problems] == ["call", "direction", "unknown"]
