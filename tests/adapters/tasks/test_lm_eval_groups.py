"""Groups of the harness' tasks are averaged as the harness averages them, and options mean what they mean there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.language_model import Generation
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.study.rules import SCORING_CHANGES, completed

lm_eval = pytest.importorskip("lm_eval")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{q}}}}"
doc_to_target: a
{more}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: {better}}}
"""
SIZES = {"small": 4, "large": 12, "wordy": 4, "loss": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("groups")
    for name, size in SIZES.items():
        rows = [{"q": f"{name} {number}:", "a": str(number % 2)} for number in range(size)]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        is_scored = name == "wordy"
        text = TASK.format(
            name=name,
            folder=made,
            kind="loglikelihood" if is_scored else "generate_until",
            more="" if is_scored else 'generation_kwargs: {until: ["\\n"], max_gen_toks: 8}',
            metric="acc" if is_scored else "exact_match",
            better=str(name != "loss").lower(),
        )
        if name == "large":
            text += "filter_list:\n  - {name: first, filter: [{function: take_first}]}\n"
            text += '  - {name: digits, filter: [{function: regex, regex_pattern: "[0-9]+"}, {function: take_first}]}\n'
        (made / f"{name}.yaml").write_text(text)
    inline = ["small", {"group": "inner", "task": ["large"]}]
    for name, tasks, by_size in (
        ("items", ["small", "large"], True), ("tasks", ["small", "last"], False), ("inline", inline, False)
    ):  # fmt: skip
        aggregate = [{"metric": "exact_match", "weight_by_size": by_size}]
        (made / f"{name}.yaml").write_text(
            json.dumps({"group": name, "task": tasks, "aggregate_metric_list": aggregate})
        )
    (made / "last.yaml").write_text(json.dumps({"group": "last", "task": ["large"]}))
    (made / "bare.yaml").write_text(json.dumps({"group": "bare", "task": ["small", "large"]}))
    again = (made / "large.yaml").read_text().replace("task: large", "task: again").replace("{{q}}", "Say: {{q}}")
    (made / "again.yaml").write_text(again)
    (made / "both.yaml").write_text(json.dumps({"group": "both", "task": ["large", "again"]}))
    for name, tasks in (("mixed", ["small", "wordy"]), ("signs", ["small", "loss"])):
        aggregate = [{"metric": "exact_match"}]
        (made / f"{name}.yaml").write_text(
            json.dumps({"group": name, "task": tasks, "aggregate_metric_list": aggregate})
        )
    return made


class Says:
    """A model that answers 1, with spaces around it, to what it is good at."""

    def __init__(self, good: str) -> None:
        self.good = good
        self.asked: list[Any] = []

    def generate(self, requests: Any) -> list[Generation]:
        self.asked += requests
        return [Generation("1" if self.good in one.prompt else "none", 1, "stop") for one in requests]


def read(folder: Path, task: str, **options: Any) -> Any:
    return build_task("t", {"type": "lm_eval", "task": task, "include_path": str(folder), **options}, folder)


def test_a_group_is_the_mean_over_items_or_over_tasks_as_it_says(folder: Path) -> None:
    """Half of the small task's 4 items are right, none of the large one's 12."""
    for group, options, expected in (
        ("items", {}, 2 / 16),
        ("tasks", {}, (2 / 4 + 0) / 2),
        ("items", {"weight_by_size": False}, 1 / 4),
        ("bare", {"weight_by_size": True}, 2 / 16),
    ):
        task = read(folder, group, report_fraction=0, **options)
        scored = task.score(Says("small"), task.items("search"))
        assert scored.mean == pytest.approx(expected)
    # Any part of the items, asked in any order, is weighted the same, so that a race estimates the same mean.
    task = read(folder, "tasks")
    some = task.score(Says("small"), task.items("search")[3:5])
    every = task.score(Says("small"), task.items("search"))
    assert some.scores == every.scores[3:5]
    for split in ("search", "report"):
        items = task.items(split)
        assert sorted(task.owners[item.id].name for item in items) == ["large"] * 6 + ["small"] * 2
        assert {task.weights[item.id] for item in items} == {8 / 4, 8 / 12}
        first = [task.owners[item.id].name for item in items[:4]]
        assert sorted(first) == ["large"] * 3 + ["small"], "every beginning has the tasks in proportion"


@pytest.mark.long  # the harness' whole index is read
def test_a_group_within_a_groups_file_is_one_of_its_own_file(folder: Path) -> None:
    here, apart = (read(folder, name) for name in ("inline", "tasks"))
    assert [item.id for item in here.items("search")] == [item.id for item in apart.items("search")]
    assert here.weights == apart.weights and here.verb == apart.verb


@pytest.mark.long  # the harness' whole index is read
def test_a_group_of_ones_own_may_name_tasks_of_the_harness(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    load_dataset = datasets.load_dataset

    def only_local(path: str, *arguments: Any, **options: Any) -> Any:
        if path != "json":
            raise ConnectionError(path)
        return load_dataset(path, *arguments, **options)

    for name in ("small.yaml", "large.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "own.yaml").write_text(json.dumps({"group": "own", "task": ["small", "arc_easy"]}))
    (tmp_path / "round.yaml").write_text(json.dumps({"group": "round", "task": ["small", "round"]}))
    config = {"type": "lm_eval", "include_path": "."}
    monkeypatch.setattr(datasets, "load_dataset", only_local)
    assert "allenai/ai2_arc, and its data is not in the cache" in problems_of({**config, "task": "own"}, tmp_path)[0]
    assert "'round': the harness could not load it" in problems_of({**config, "task": "round"}, tmp_path)[0]


def test_an_item_of_two_tasks_is_on_one_side_of_the_split(folder: Path) -> None:
    task = read(folder, "both", weight_by_size=True)
    sides = [{str(task.documents[item.id]) for item in task.items(split)} for split in ("search", "report")]
    assert [len(task.items(split)) for split in ("search", "report")] == [12, 12] and not sides[0] & sides[1]
    prompts = {question.prompt for question in task.questions(task.items("search"))}
    assert len(prompts) == 12


@pytest.mark.parametrize(
    ("options", "filter_", "scores"),
    [
        ({}, None, 0.0),
        ({"metric": "exact_match,digits"}, "digits", 0.5),
        ({"metric": "exact_match", "filter": "digits"}, "digits", 0.5),
        ({"metric": "exact_match,first"}, "first", 0.0),
    ],
)
def test_the_filter_that_is_named_reads_the_answers(
    folder: Path, options: dict[str, Any], filter_: str | None, scores: float
) -> None:
    class Talks(Says):
        def generate(self, requests: Any) -> list[Generation]:
            return [Generation("It is 1, I think", 5, "stop") for _ in requests]

    task = read(folder, "large", report_fraction=0, **options)
    assert task.members[0].filter == filter_
    assert task.score(Talks(""), task.items("search")).mean == scores
    assert ("there are also exact_match,first, exact_match,digits" in str(task.remark)) is (not options)


def test_settings_of_generation_and_limits_are_the_harness_own(folder: Path) -> None:
    task = read(folder, "large", report_fraction=0, limit=3, gen_kwargs={"max_new_tokens": 3, "until": "k"})
    model = Says("large")
    task.score(model, task.items("search"))
    assert {(one.max_new_tokens, one.stop) for one in model.asked} == {(3, ("k",))}
    assert sorted(one.prompt for one in model.asked) == [f"large {number}:" for number in range(3)]
    assert len(read(folder, "large", report_fraction=0, limit=0.3).items("search")) == 4
    assert task.stops == ("k",)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"task": "mixed"}, "'mixed': 1 of its 2 tasks cannot be averaged with the others: task 'wordy' has no metric"),
        ({"task": "mixed"}, "it has acc,none"),
        ({"task": "signs"}, "exact_match is better high in some, low in some"),
        ({"task": "bare"}, "say weight_by_size: true (each item counts the same) or false (each of its 2 tasks does)"),
        ({"task": "small", "weight_by_size": True}, "'small' is one task"),
        ({"task": "large", "metric": "exact_match,digit"}, "has no filter 'digit' (did you mean 'digits'?)"),
        ({"task": "large", "metric": "exact_match,digit"}, "; it has exact_match,first, exact_match,digits"),
        ({"task": "large", "metric": "exact_match,first", "filter": "digits"}, "keep one of them"),
        ({"task": "large", "gen_kwargs": {"max_tokns": 3}}, "gen_kwargs: unknown key 'max_tokns' (did you mean"),
        ({"task": "large", "gen_kwargs": {"temperature": 0.5}}, "the task samples (temperature 0.5)"),
        ({"task": "wordy", "gen_kwargs": {"max_gen_toks": 3}}, "task 'wordy' generates nothing"),
        pytest.param({"task": "lrge"}, "did you mean 'large'?", marks=pytest.mark.long),
        ({"task": "items.yaml"}, "write task: items, with its folder as include_path"),
        ({"task": "items", "search_items": 1}, "1 tasks of 'items' have no search item"),
    ],
)
def test_what_cannot_be_averaged_or_generated_is_one_line(folder: Path, config: dict[str, Any], said: str) -> None:
    problems = problems_of({"type": "lm_eval", "include_path": str(folder), **config}, folder)
    assert len(problems) == 1 and said in problems[0] and "\n" not in problems[0], problems


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("unsafe_code: true", "runs programs that models write"),
        ("doc_to_image: q", "shows images or sounds"),
        ("output_type: loglikelihood_rolling", "use type: jsonl with metric: loss instead"),
    ],
)
def test_what_would_run_programs_or_miss_its_images_is_refused(
    folder: Path, tmp_path: Path, more: str, said: str
) -> None:
    text = (folder / "small.yaml").read_text().replace("output_type: generate_until\n", "")
    own = more if "output_type" in more else f"output_type: generate_until\n{more}"
    (tmp_path / "own.yaml").write_text(f"{text}{own}\n")
    config = {"type": "lm_eval", "task": "own.yaml"}
    assert said in problems_of(config, tmp_path)[0]
    assert not problems_of({**config, "confirm_run_unsafe_code": True}, tmp_path) or "unsafe" not in more


def test_names_of_the_longest_answer_that_were_not_read_are_a_change(folder: Path, tmp_path: Path) -> None:
    text = (folder / "small.yaml").read_text().replace("max_gen_toks: 8", "max_tokens: 8")
    (tmp_path / "own.yaml").write_text(text)
    (tmp_path / "usual.yaml").write_text((folder / "small.yaml").read_text())
    config = {"type": "lm_eval", "task": "own.yaml"}
    assert build_task("t", config, tmp_path).longest_answer == 8  # type: ignore[attr-defined]
    (row,) = [row for row in SCORING_CHANGES if "max_completion_tokens" in row.what]
    for name, touched in (("own.yaml", True), ("usual.yaml", False), ("gsm8k", False)):
        stored = {"evaluator": {"tasks": {"t": {"type": "lm_eval", "task": name}}}}
        assert row.touches(stored, tmp_path) is touched


def test_examples_of_older_studies_are_drawn_as_they_were() -> None:
    """Without: the prompts of a study that goes on would change in the middle of it."""
    stored = {"sampler": {"name": "tpe"}, "scoring": 3, "evaluator": {"tasks": {"t": {"type": "lm_eval"}}}}
    assert completed(stored)["evaluator"]["tasks"]["t"]["fewshot_seed"] is None
