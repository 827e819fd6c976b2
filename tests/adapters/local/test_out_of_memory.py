"""Memory that runs out while a merge is asked makes batches smaller; a candidate fails where one item is too much."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mergefront.adapters.evaluator import TaskEvaluator, out_of_memory
from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.local.limits import halving
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.tasks.task_types import build_task
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import EvaluationRequest

SCORED = [ScoringRequest(f"Sort {number} 7 2:", f" 2 {number} 7") for number in range(3, 9)]
WRITTEN = [GenerationRequest(f"Write {number}:", 4) for number in range(420, 432)]
ERRORS: dict[str, Callable[[], Exception]] = {
    "accelerator": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "python": MemoryError,
    "allocator": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes"),
}


def crowded(model: Any, most_rows: int, error: Callable[[], Exception]) -> tuple[Any, list[int]]:
    """A copy of a model whose device has memory for so many rows at once, and the rows of every pass."""
    small, passes = copy.deepcopy(model), list[int]()

    def allocate(_: Any, args: Any, named: dict[str, Any]) -> None:
        passes.append(named["input_ids"].shape[0])
        if passes[-1] > most_rows:
            raise error()

    small.register_forward_pre_hook(allocate, with_kwargs=True)
    return small, passes


@pytest.mark.parametrize("kind", ERRORS)
def test_a_batch_that_does_not_fit_is_halved_and_no_later_one_is_as_large(
    tiny_llama: Any, tokenizer: Any, kind: str
) -> None:
    roomy = HuggingFaceModel(tiny_llama, tokenizer)
    small, passes = crowded(tiny_llama, 2, ERRORS[kind])
    model = HuggingFaceModel(small, tokenizer)
    for ours, theirs in zip(model.loglikelihood(SCORED), roomy.loglikelihood(SCORED), strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
    assert model.generate(WRITTEN) == roomy.generate(WRITTEN)
    assert max(passes) > 2, "the memory never ran out; the test shows nothing"
    passes.clear()
    model.loglikelihood(SCORED)
    model.generate(WRITTEN)
    assert max(passes) <= 2, "what did not fit is tried again for every candidate"


def test_what_else_goes_wrong_is_not_tried_again() -> None:
    calls: list[list[int]] = []

    def run(rows: list[int]) -> None:
        calls.append(rows)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        halving([1, 2, 3, 4], 10, 100, run)
    assert calls == [[1, 2, 3, 4]]
    assert not out_of_memory(ValueError("out of memory")), "a text that speaks of memory is no allocator's error"


def test_one_item_that_does_not_fit_is_a_failed_candidate_with_advice_and_the_next_is_scored(
    tiny_llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "items.jsonl").write_text(
        '{"prompt": "two plus two:", "answer": " four"}\n{"prompt": "one plus two:", "answer": " three"}\n'
    )
    small, _ = crowded(tiny_llama, 0, ERRORS["accelerator"])
    weights = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    expert = {name: tensor + 0.01 for name, tensor in weights.items()}
    backend = LocalBackend(small, weights, {"a": expert}, tokenizer=tokenizer)
    task = build_task("sums", {"type": "jsonl", "path": "items.jsonl", "metric": "loss"}, tmp_path, 0)
    evaluator = TaskEvaluator(backend, [task])
    recipe = Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 0.5}, "base")
    with pytest.raises(EvaluationError, match=r"one item at a time .*max_memory.* or give the task shorter") as raised:
        evaluator.evaluate(recipe, EvaluationRequest(("sums",)))
    assert raised.value.kind == "out of memory"
    small._forward_pre_hooks.clear()
    small._forward_pre_hooks_with_kwargs.clear()
    assert evaluator.evaluate(recipe, EvaluationRequest(("sums",))).scores["sums"] > 0
