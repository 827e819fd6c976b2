"""Tasks of the LM evaluation harness give the harness' own numbers, item by item, on any of our models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.language_model import Generation, LogLikelihood
from mergefront.adapters.local.model import HuggingFaceModel
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.demo.experts import _new_model, _tokenizer
from mergefront.demo.skills import SKILLS, item
from mergefront.optimizer.errors import EvaluationError, UserError

lm_eval = pytest.importorskip("lm_eval")

CHOICES = """\
task: local_most
dataset_path: json
dataset_kwargs: {data_files: {test: most.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
ANSWERS = """\
task: local_reverse
dataset_path: json
dataset_kwargs: {data_files: {test: reverse.jsonl, validation: reverse_validation.jsonl}}
test_split: test
validation_split: validation
fewshot_split: validation
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: answer
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 10}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import random

    made = tmp_path_factory.mktemp("harness")
    rng = random.Random(0)
    for name, skill, count in (("most", "most", 40), ("reverse", "reverse", 30), ("reverse_validation", "reverse", 20)):
        letters = ["".join(rng.choices("abcdefgh", k=6)) for _ in range(count)]
        lines = [item(skill, f"{text}aab", rng) for text in letters] if skill in SKILLS else []
        (made / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (made / "most.yaml").write_text(CHOICES)
    (made / "reverse.yaml").write_text(ANSWERS)
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    import torch

    torch.manual_seed(0)
    return _new_model().eval(), _tokenizer()


def test_search_on_validation_items_report_on_test_items(folder: Path, model: Any) -> None:
    task = build_task("reverse", {"type": "lm_eval", "task": "reverse.yaml", "num_fewshot": 2}, folder)
    assert (len(task.items("search")), len(task.items("report"))) == (20, 30)
    assert task.verb == "generate" and task.direction == "maximize"
    assert task.announcement is None, "a task of one's own is no published benchmark"  # type: ignore[attr-defined]
    everything = task.score(HuggingFaceModel(*model, max_length=128), task.items("search"))
    again = build_task("reverse", {"type": "lm_eval", "task": "reverse.yaml", "num_fewshot": 2}, folder)
    some = again.score(HuggingFaceModel(*model, max_length=128), again.items("search")[7:9])
    assert some.scores == everything.scores[7:9], "an item's examples must not depend on which others were asked"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"task": "most.yml"}, "there is no file"),
        ({"task": "most.yaml", "metric": "acc_nrm"}, "did you mean 'acc_norm'"),
        ({"task": "most.yaml", "filter": "strict"}, "has no filter 'strict'"),
        ({"task": "most.yaml", "search_items": 500}, "search_items is 500; there are 20"),
        pytest.param({"task": "local_mots", "include_path": "."}, "did you mean 'local_most'", marks=pytest.mark.long),
        ({"task": "most.yaml", "metrics": "acc"}, "did you mean 'metric'"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], said: str, folder: Path) -> None:
    problems = problems_of({"type": "lm_eval", **config}, folder)
    assert said in "\n".join(problems)


def test_a_split_of_its_own_never_shares_an_item(folder: Path) -> None:
    config = {"type": "lm_eval", "task": "most.yaml", "report_fraction": 0.25}
    task = build_task("most", config, folder, seed=3)
    search, report = ({item.id for item in task.items(split)} for split in ("search", "report"))
    assert not search & report and len(search) == 30 and len(report) == 10
    with pytest.raises(UserError, match="did you mean 'report'"):
        task.items("reports")


ARC = [
    {
        "id": f"q{number}",
        "question": f"Which letter comes after {letter}?",
        "choices": {"text": ["a", "h", chr(ord(letter) + 1), "cab"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    }
    for number, letter in enumerate("bcdefbcdefbc")
]
GSM8K = [{"question": f"What is {n} and {n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(12)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


class Parrot:
    """A model that knows what follows: it likes choices that the question's letter precedes, and does sums."""

    def loglikelihood(self, requests: Any) -> Any:
        return [
            LogLikelihood(
                -1.0 if ord(one.continuation.strip()[0]) - ord(one.context.split("after ")[-1][0]) == 1 else -9.0,
                1,
                True,
            )
            for one in requests
        ]

    def generate(self, requests: Any) -> Any:
        asked = [one.prompt.rsplit("What is ", 1)[1].split()[0] for one in requests]
        assert all(one.prompt.count("Question:") == 3 for one in requests), "two examples, then the question"
        return [Generation(f" Twice {n}.\n#### {2 * int(n)}", 5, "stop") for n in asked]


@pytest.mark.long
def test_a_published_task_asks_local_data_in_its_own_words(tmp_path: Path) -> None:
    """Without a hub, and for data that never leaves the house: the benchmark's prompts and scoring, one's own items."""
    config = {"type": "lm_eval", "task": "arc_easy", "data_files": {"test": write(tmp_path / "arc.jsonl", ARC)}}
    arc = build_task("arc", config, tmp_path)
    scored = arc.score(Parrot(), arc.items("search"))
    assert set(scored.scores) == {1.0} and len(scored.ids) < len(ARC), "an item that stands twice is asked once"
    files = {"test": write(tmp_path / "gsm.jsonl", GSM8K), "train": write(tmp_path / "examples.jsonl", GSM8K[:5])}
    config = {"type": "lm_eval", "task": "gsm8k", "data_files": files, "num_fewshot": 2, "filter": "strict-match"}
    sums = build_task("sums", config, tmp_path)
    assert set(sums.score(Parrot(), sums.items("search")).scores) == {1.0}
    assert "files of its own" in str(sums.announcement)  # type: ignore[attr-defined]


@pytest.mark.long
def test_local_data_that_does_not_fit_the_task_is_named(tmp_path: Path) -> None:
    files = {"test": write(tmp_path / "gsm.jsonl", GSM8K)}
    write(tmp_path / "gsm.txt", GSM8K)
    for task, given, said in (
        ("gsm8k", files, "draws 5 examples from the split 'train'"),
        ("gsm8k", {"tset": "gsm.jsonl"}, "did you mean 'test'"),
        ("arc_easy", {"test": "nowhere.jsonl"}, "there is no file"),
        ("arc_easy", {"test": "gsm.txt"}, "of one kind: .jsonl"),
        ("arc_easy", "gsm.jsonl", "one file for each split"),
    ):
        problems = problems_of({"type": "lm_eval", "task": task, "data_files": given}, tmp_path)
        assert said in "\n".join(problems)


SHOTS = """\
task: shots
dataset_path: json
dataset_kwargs: {{data_files: {{validation: rows.jsonl{files}}}}}
validation_split: validation
{splits}
output_type: generate_until
doc_to_text: "Q: {{{{q}}}} A:"
doc_to_target: a
num_fewshot: 4
fewshot_delimiter: "\\n"
{more}
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


@pytest.mark.parametrize(
    ("files", "splits", "more"),
    [
        ("", "fewshot_split: validation", ""),
        ("", "", ""),
        ("", "fewshot_split: validation", "fewshot_config: {sampler: first_n}"),
        (", train: rows.jsonl", "training_split: train\nfewshot_split: train", ""),
        (", train: other_ids.jsonl", "training_split: train\nfewshot_split: train", ""),
        (", test: rows.jsonl", "test_split: test\nfewshot_split: test", ""),
    ],
)
def test_no_item_stands_answered_in_its_own_prompt(tmp_path: Path, files: str, splits: str, more: str) -> None:
    """A model that copies would be the best of all."""
    for name, start in (("rows", 0), ("other_ids", 100)):
        rows = [{"q": f"what is {n} times 7?", "a": str(7 * n), "id": start + n} for n in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(SHOTS.format(files=files, splits=splits, more=more))
    task: Any = build_task("t", {"type": "lm_eval", "task": "task.yaml", "report_fraction": 0.25}, tmp_path)
    items = [*task.items("search"), *task.items("report")]
    for one, question in zip(items, task.questions(items), strict=True):
        *examples, asked = question.prompt.split("\n")
        assert len(examples) == 4 and asked == f"Q: {task.documents[one.id]['q']} A:"
        assert not any(example.startswith(asked) for example in examples)
    assert task.may_show_items is (files != ", train: other_ids.jsonl" and "test" not in files)


def test_too_few_examples_beside_the_item_are_said_and_not_filled_up(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": str(n), "a": str(n)}) + "\n" for n in range(4)))
    (tmp_path / "task.yaml").write_text(SHOTS.format(files="", splits="fewshot_split: validation", more=""))
    task: Any = build_task("t", {"type": "lm_eval", "task": "task.yaml"}, tmp_path)
    with pytest.raises(UserError, match="num_fewshot is 4, and there are 3 examples"):
        task.questions(task.items("search"))


@pytest.mark.parametrize("kind", ["multiple_choice", "loglikelihood"])
@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_answer_without_text_is_refused_when_the_task_is_read(tmp_path: Path, kind: str, empty: str | None) -> None:
    """Its log-likelihood is an empty sum, 0, and beats every other."""
    said = [*"bcdef", "a" if empty is None else empty]
    rows = [{"prompt": f"{text}:", "choices": ["the", text], "answer": 1, "said": text} for text in said]
    (tmp_path / "most.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = CHOICES.replace("multiple_choice", kind)
    if kind == "loglikelihood":
        text = text.replace("doc_to_choice: choices\n", "").replace("doc_to_target: answer", "doc_to_target: said")
        text = text.replace("  - {metric: acc_norm, aggregation: mean, higher_is_better: true}\n", "")
    (tmp_path / "task.yaml").write_text(text)
    problems = problems_of({"type": "lm_eval", "task": "task.yaml"}, tmp_path)
    assert ["1 of 6 items have an empty choice" in problem for problem in problems] == [True] * (empty is not None), (
        problems
    )


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ("do_sample: true, temperature: 0.7", True),
        ("temperature: 0.7", True),
        ("do_sample: false, temperature: 0.7", False),
        ("temperature: 0.0", False),
        ("do_sample: true, temperature: 0.0", False),
        ("max_gen_toks: 3", False),
    ],
)
def test_a_task_that_samples_is_refused_when_it_is_read(tmp_path: Path, settings: str, samples: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": str(n), "a": str(n)}) + "\n" for n in range(4)))
    text = SHOTS.format(files="", splits="", more="").replace("max_gen_toks: 8", settings).replace("num_fewshot: 4", "")
    (tmp_path / "task.yaml").write_text(text)
    problems = problems_of({"type": "lm_eval", "task": "task.yaml"}, tmp_path)
    assert ["the task samples (temperature 0.7)" in problem for problem in problems] == [True] * samples


def test_an_item_without_an_answer_is_wrong_in_the_harness_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"q": str(n), "a": str(n)}) + "\n" for n in range(4)))
    text = SHOTS.format(files="", splits="", more="").replace("num_fewshot: 4", "num_fewshot: 0")
    (tmp_path / "task.yaml").write_text(text)

    class Filtered:
        def generate(self, requests: Any) -> list[Generation]:
            answers = [Generation(one.prompt[3], 1, "stop") for one in requests]
            return [Generation("", 0, "stop", unanswered="content filter"), *answers[1:]]

    task: Any = build_task("t", {"type": "lm_eval", "task": "task.yaml", "report_fraction": 0}, tmp_path)
    assert task.score(Filtered(), task.items("search")).scores == (0.0, 1.0, 1.0, 1.0)
    task.direction = "minimize"
    with pytest.raises(EvaluationError, match="content filter"):
        task.score(Filtered(), task.items("search"))
