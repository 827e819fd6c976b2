"""Learning a merge's coefficients without labels: its gradient is that of the whole merge, and it finds the experts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_study import write_local_study
from safetensors.torch import load_file
from torch.func import functional_call

from mergefront.adapters.language_model import GenerationRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.starting.alignment import Aligner, AlignmentSettings, Lesson
from mergefront.adapters.starting.posterior import mean_posterior, posterior, texts_of
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.space import MergeSpace

EXPERTS = ("one", "two")
REQUESTS = [GenerationRequest("sort abc:", 4), GenerationRequest("sort fedcb:", 4), GenerationRequest("side a:", 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_local_study(folder, "plain")
    return folder


@pytest.fixture(scope="module")
def backend(folder: Path) -> LocalBackend:
    return LocalBackend.from_checkpoints(folder / "base", {name: folder / name for name in EXPERTS}, device="cpu")


def space(**more: Any) -> MergeSpace:
    return MergeSpace(list(EXPERTS), base_model="base", method="task_arithmetic", parameters={"weight": [0, 1]}, **more)


def by_autograd(
    folder: Path, model: Any, weights: torch.Tensor, block_of: Any, lessons: list[Lesson], temperature: float
) -> torch.Tensor:
    """The mean distance, written out over the merge base + sum a_k tau_k as one function of the coefficients."""
    stored = {name: load_file(folder / name / "model.safetensors") for name in ("base", *EXPERTS)}
    live = dict(model.named_parameters())
    merged = {}
    for name, base in stored["base"].items():
        column = block_of(name)
        taus = [stored[expert][name] - base for expert in EXPERTS]
        merged[name] = base + sum(weights[row, column] * tau for row, tau in enumerate(taus))
    assert set(merged) <= set(live)
    losses = []
    for lesson in lessons:
        (text, target) = lesson.texts[0], lesson.targets[0]
        out = functional_call(model, merged, kwargs={"input_ids": text, "output_hidden_states": True}, tie_weights=True)
        states = [one[0] / (one[0] ** 2).mean(-1, keepdim=True) ** 0.5 for one in out.hidden_states]
        errors = [((a - b) ** 2).mean() for a, b in zip(states, target.hidden, strict=True)]
        hidden = sum(error / unit for error, unit in zip(errors, lesson.unit_hidden, strict=True)) / len(errors)
        theirs = target.next_tokens.exp()
        ours = torch.log_softmax(out.logits[0] / temperature, -1)
        divergence = (theirs * (theirs.log() - ours)).sum(-1).mean()
        losses.append(hidden + divergence / lesson.unit_next)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_gradient_is_that_of_the_whole_merge(folder: Path, backend: LocalBackend, blocks: int) -> None:
    layers = int(backend.model.config.num_hidden_layers)
    made = space() if blocks == 1 else space(granularity={"blocks": 2}, layers=layers)
    settings = AlignmentSettings(temperature=2.0)
    aligner = Aligner(backend, made, settings)
    lessons = [aligner.lesson(name, REQUESTS[:1]) for name in EXPERTS]
    values = torch.tensor([[0.3, 0.7], [0.2, 0.45]])[:, :blocks].clone().requires_grad_(True)
    named = dict(zip(aligner.names, values.flatten().tolist(), strict=True))
    loss, slopes = aligner.gradient(named, lessons, 0)
    block_of = made.grouping.block_of if blocks == 2 else lambda name: 0
    expected = by_autograd(folder, backend.model, values, block_of, lessons, 2.0)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    assert list(slopes.values()) == pytest.approx(values.grad.flatten().tolist(), rel=1e-3, abs=1e-5)
    # What is learned on is as it was: no gradients are kept, and merges are made as before.
    assert all(one.grad is None and not one.requires_grad for one in backend.model.parameters())


def test_units_are_the_bases_distances(backend: LocalBackend) -> None:
    aligner = Aligner(backend, space(), AlignmentSettings())
    (lesson,) = [aligner.lesson("one", REQUESTS)]
    at = {"weight[one]": 0.0, "weight[two]": 0.0}
    assert sum(aligner.gradient(at, [lesson], step)[0] for step in range(3)) / 3 == pytest.approx(2.0, rel=1e-4)
    assert aligner.gradient({**at, "weight[one]": 1.0}, [lesson], 1)[0] == pytest.approx(0.0, abs=1e-5)


def test_it_learns_which_expert_is_followed(backend: LocalBackend) -> None:
    made = space()
    aligner = Aligner(backend, made, AlignmentSettings(steps=25, rate=0.3))
    lesson = aligner.lesson("two", REQUESTS)
    told: list[float] = []
    weights = aligner.learn([lesson], lambda step, loss: told.append(loss))
    assert weights["weight[two]"] > 0.8 and weights["weight[one]"] < 0.2
    assert told[-1] < 0.5 * told[0] and len(told) == 25
    assert aligner.learn([lesson]) == weights


def test_a_model_without_texts_is_refused(folder: Path) -> None:
    state = {"weight": torch.eye(2)}
    plain = LocalBackend(torch.nn.Linear(2, 2, bias=False), state, {"one": state})
    with pytest.raises(UserError, match="Linear is none"):
        Aligner(plain, MergeSpace(["one"], base_model="b", method="task_arithmetic"), AlignmentSettings())


def test_a_posterior_is_by_bayes() -> None:
    shares = posterior({"a": math.log(0.02) - 1000, "b": math.log(0.06) - 1000})
    assert shares == pytest.approx({"a": 0.25, "b": 0.75})
    # Of the two tasks each counts alike, however many texts it has.
    told = {"a": [[0.0, 0.0, 0.0], [-1000.0], []], "b": [[-1000.0] * 3, [0.0], []]}
    assert mean_posterior(told) == pytest.approx({"a": 0.5, "b": 0.5})


def test_what_is_read_of_an_item_is_a_right_answer_or_the_prompt(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "2 + 2 =", "choices": ["3", "4"], "answer": 1}',
        '{"prompt": "1 + 1 =", "choices": ["2", "5"], "answer": 0}',
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    task = JsonlTask.read("c", "c.jsonl", "loglikelihood", folder=tmp_path, report_fraction=0)
    assert {(one.context, one.continuation) for one in texts_of(task)} == {("2 + 2 =", " 4"), ("1 + 1 =", " 2")}

    class OfTheHarness(JsonlTask):
        """Its items are ids, and which choice is right is known to the harness alone."""

        def items(self, split: str) -> Sequence[Item]:
            return [replace(item, answers=(), right=()) for item in super().items(split)]

    harness = OfTheHarness(task.name, task.metric, task.metric_options, task.splits)
    assert {(one.context, one.continuation) for one in texts_of(harness)} == {("", "2 + 2 ="), ("", "1 + 1 =")}
    with pytest.raises(UserError, match="no search item is a text"):
        mean_posterior({"a": [[]], "b": [[]]})
