"""Tasks: data files that are wrong are told apart line by line, splits never share an item, metrics are right."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergefront.adapters.language_model import Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.adapters.tasks.metrics.known_metrics import METRICS
from mergefront.adapters.tasks.task import split_items
from mergefront.adapters.tasks.task_types import TASK_TYPES, build_task, problems_of
from mergefront.optimizer.errors import EvaluationError, UserError


class LetterModel:
    """A language model over letters: each has a fixed probability, whatever stands before it.

    It answers a prompt with its last word.
    """

    def __init__(self, letters: dict[str, float]) -> None:
        self.logprobs = {letter: math.log(probability) for letter, probability in letters.items()}

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return [
            LogLikelihood(
                sum(self.logprobs.get(letter, -9.0) for letter in request.continuation),
                len(request.continuation),
                False,
            )
            for request in requests
        ]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        answers = []
        for request in requests:
            text = f" {request.prompt.split()[-1]} \n"
            cut = min((text.index(stop) for stop in request.stop if stop in text), default=len(text))
            answers.append(Generation(text[:cut], len(text), "stop"))
        return answers


MODEL = LetterModel({"a": 0.5, "b": 0.25, "c": 0.125, " ": 0.125})


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def task(tmp_path: Path, metric: str, *lines: dict[str, Any], **options: Any) -> JsonlTask:
    write(tmp_path / "data.jsonl", *lines)
    return JsonlTask.read("task", "data.jsonl", metric, folder=tmp_path, report_fraction=0.0, **options)


def score(made: JsonlTask) -> dict[str, tuple[float, float | None]]:
    """Score and margin by prompt."""
    items = made.items("search")
    scored = made.score(MODEL, items)
    assert scored.ids == tuple(item.id for item in items)
    margins = scored.margins or (None,) * len(items)
    return {item.prompt: (value, margin) for item, value, margin in zip(items, scored.scores, margins, strict=True)}


# -- metrics


def test_exact_match_compares_stripped_text_with_every_accepted_answer(tmp_path: Path) -> None:
    made = task(
        tmp_path,
        "exact_match",
        {"prompt": "say a", "answer": "a"},
        {"prompt": "say b", "answer": ["x", " b "]},
        {"prompt": "say c", "answer": "C"},
    )
    assert score(made) == {"say a": (1.0, None), "say b": (1.0, None), "say c": (0.0, None)}


def test_choices_are_scored_by_the_likeliest_and_margins_by_how_far_ahead_the_right_one_is(tmp_path: Path) -> None:
    made = task(
        tmp_path,
        "loglikelihood",
        {"prompt": "by index", "choices": ["b", "a"], "answer": 1},
        {"prompt": "by text", "choices": ["a", "b", "c"], "answer": "c"},
        {"prompt": "two right", "choices": ["a", "b", "c"], "answer": ["b", "c"]},
    )
    scored = score(made)
    assert scored["by index"] == (1.0, pytest.approx(math.log(2)))
    assert scored["by text"] == (0.0, pytest.approx(math.log(0.125 / 0.5)))
    assert scored["two right"] == (0.0, pytest.approx(math.log(0.25 / 0.5)))


def test_length_normalised_choices_do_not_lose_for_being_long(tmp_path: Path) -> None:
    line = {"prompt": "which", "choices": ["aaaa", "c"], "answer": 0}
    assert score(task(tmp_path, "loglikelihood", line, delimiter=""))["which"][0] == 0.0
    right, margin = score(task(tmp_path, "loglikelihood", line, delimiter="", length_normalised=True))["which"]
    assert (right, margin) == (1.0, pytest.approx(math.log(0.5) - math.log(0.125)))


def test_loss_is_minimised_and_its_margin_is_larger_when_better(tmp_path: Path) -> None:
    made = task(tmp_path, "loss", {"text": "ab"}, {"prompt": "then", "answer": "c"})
    assert made.direction == "minimize"
    assert all(METRICS[name].direction == "maximize" for name in ("exact_match", "loglikelihood"))
    scored = score(made)
    assert scored[""] == (pytest.approx(-math.log(0.5 * 0.25) / 2), pytest.approx(math.log(0.5 * 0.25) / 2))
    assert scored["then"][0] == pytest.approx(-math.log(0.125 * 0.125) / 2)  # the delimiter is scored with the answer


@pytest.mark.parametrize("metric", ["loss", "loglikelihood"])
def test_a_choice_or_answer_without_tokens_never_wins(tmp_path: Path, metric: str) -> None:
    class Mute(LetterModel):
        def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
            return [LogLikelihood(0.0, 0, True) for _ in requests]

    made = task(tmp_path, metric, {"prompt": "p", "choices": ["a", "b"], "answer": "a"})
    with pytest.raises(EvaluationError, match="no tokens"):
        made.score(Mute({"a": 1.0}), made.items("search"))


# -- data files

BROKEN: list[tuple[str, str, str]] = [
    ("exact_match", '{"prompt": "a"}', "the key 'answer' is missing"),
    ("exact_match", '{"prompt": "a", "anwser": "b"}', "is 'anwser' meant?"),
    ("exact_match", '{"prompt": "a", "answer": "b"', "not valid JSON"),
    ("exact_match", '["a", "b"]', "is a list in JSON"),
    ("exact_match", '{"prompt": "a", "answer": "  "}', "'answer' is empty"),
    ("exact_match", '{"prompt": 3, "answer": "b"}', "'prompt' is a number"),
    ("exact_match", '{"prompt": "a", "answer": 1.5}', "'answer' is a number; it must be a string"),
    ("exact_match", '{"prompt": "a", "answer": []}', "'answer' is an empty list"),
    ("exact_match", '{"prompt": "a", "answer": "\\ud800"}', "surrogate"),
    ("loglikelihood", '{"prompt": "a", "answer": "b"}', "the key 'choices' is missing"),
    ("loglikelihood", '{"prompt": "a", "choices": ["x"], "answer": 0}', "two or more"),
    ("loglikelihood", '{"prompt": "a", "choices": ["x", "x"], "answer": 0}', "twice"),
    ("loglikelihood", '{"prompt": "a", "choices": ["x", "y"], "answer": 2}', "must lie in [0, 1]"),
    ("loglikelihood", '{"prompt": "a", "choices": ["x", "y"], "answer": "z"}', "none of the choices"),
    ("loglikelihood", '{"prompt": "a", "choices": ["x", "y"], "answer": [0, 1]}', "not all of them"),
    ("loglikelihood", '{"prompt": "a", "choices": ["x", "y"], "answer": true}', "index or the text"),
    ("loss", '{"text": "a", "prompt": "b"}', "either a text or a question"),
    ("loss", '{"prompt": "a"}', "prompt+answer or text"),
]


@pytest.mark.parametrize(("metric", "line", "message"), BROKEN)
def test_a_broken_line_is_named_with_file_and_number(tmp_path: Path, metric: str, line: str, message: str) -> None:
    good = {"prompt": "p", "choices": ["x", "y"], "answer": "x"}
    write(tmp_path / "maths.jsonl", good, "", line)
    (problem,) = problems_of({"type": "jsonl", "path": "maths.jsonl", "metric": metric, "report_fraction": 0}, tmp_path)
    assert problem.startswith("maths.jsonl:3: ")
    assert message in problem


def test_every_problem_of_a_file_is_listed_up_to_a_limit(tmp_path: Path) -> None:
    config = {"type": "jsonl", "path": "maths.jsonl", "metric": "exact_match"}
    write(tmp_path / "maths.jsonl", *["{"] * 3, {"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "a"})
    assert [problem.split(": ")[0] for problem in problems_of(config, tmp_path)] == [
        "maths.jsonl:1", "maths.jsonl:2", "maths.jsonl:3",
    ]  # fmt: skip
    write(tmp_path / "maths.jsonl", *["{"] * 500)
    problems = problems_of(config, tmp_path)
    assert len(problems) == 11
    assert problems[-1] == "maths.jsonl: and 490 more problems"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no items"),
        (b"\n \n", "has no items"),
        (b'{"prompt": "a\xff"}\n', "not UTF-8"),
        (None, "no such file"),
    ],
)
def test_files_without_items_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "maths.jsonl").write_bytes(content)
    (problem,) = problems_of({"type": "jsonl", "path": "maths.jsonl", "metric": "exact_match"}, tmp_path)
    assert problem.startswith("maths.jsonl") and message in problem


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "maths.jsonl")
    (problem,) = problems_of({"type": "jsonl", "path": "maths.jsonl", "metric": "exact_match"}, tmp_path)
    assert problem == "maths.jsonl: cannot be read (it is a device, a pipe or a socket)"


def test_a_byte_order_mark_windows_line_ends_and_other_keys_do_no_harm(tmp_path: Path) -> None:
    text = '\ufeff{"prompt": "say a", "answer": "a", "source": "book 3"}\r\n{"prompt": "say b", "answer": 7}\r\n'
    (tmp_path / "data.jsonl").write_bytes(text.encode("utf-8"))
    made = JsonlTask.read("task", "data.jsonl", "exact_match", folder=tmp_path, report_fraction=0)
    assert {item.prompt: item.answers for item in made.items("search")} == {"say a": ("a",), "say b": ("7",)}


def test_repeated_items_are_refused_within_a_file_and_across_splits(tmp_path: Path) -> None:
    one, two, three = ({"prompt": str(number), "answer": "x"} for number in range(3))
    write(tmp_path / "search.jsonl", one, two, {**one, "source": "again"})
    config = {"type": "jsonl", "path": "search.jsonl", "metric": "exact_match", "report": "report.jsonl"}
    write(tmp_path / "report.jsonl", three)
    assert problems_of(config, tmp_path) == ["search.jsonl:3: repeats the item of line 1; remove one of them"]
    write(tmp_path / "search.jsonl", one, two)
    write(tmp_path / "report.jsonl", three, two)
    (problem,) = problems_of(config, tmp_path)
    assert problem.startswith("report.jsonl:2: is a search item too (search.jsonl:2)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrik": "x"}, "unknown key 'metrik' (did you mean 'metric'?)"),
        ({"metric": "exact-match"}, "did you mean 'exact_match'?"),
        ({"metric": ["loss"]}, "metric is ['loss']"),
        ({"type": "jsnl"}, "did you mean 'jsonl'?"),
        ({"type": None}, "unknown task type"),
        ({"path": ""}, "it must be a path"),
        ({"report_fraction": 1}, "a number in [0, 1)"),
        ({"report_fraction": True}, "a number in [0, 1)"),
        ({"max_new_tokens": 0}, "a whole number of at least 1"),
        ({"stop": [""]}, "none of them empty"),
        ({"search_items": 3}, "search_items is 3; there are 1 search items"),
        ({"report": "absent.jsonl"}, "absent.jsonl: there is no such file"),
    ],
)
def test_wrong_options_are_named_with_what_would_be_right(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path / "data.jsonl", {"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"})
    config = {"type": "jsonl", "path": "data.jsonl", "metric": "exact_match"}
    assert problems_of(config, tmp_path) == []
    assert message in "\n".join(problems_of({**config, **change}, tmp_path))
    with pytest.raises(UserError):
        build_task("maths", {**config, **change}, tmp_path)


def test_a_task_that_is_no_mapping_or_lacks_its_keys_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    assert problems_of(None, tmp_path)
    assert problems_of({}, tmp_path) == [f"the key 'type' is missing; it is one of {', '.join(TASK_TYPES)}"]
    assert problems_of({"type": "jsonl"}, tmp_path) == ["the key 'path' is missing", "the key 'metric' is missing"]


# -- splits


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5), st.randoms(use_true_random=False))
def test_search_and_report_items_are_disjoint_whatever_the_order_of_the_file(
    count: int, fraction: float, seed: int, random: Any
) -> None:
    items = [Item(f"{number:016x}", str(number), ("a",)) for number in range(count)]
    search, report = split_items(items, fraction, seed)
    assert search and report
    assert {*search} | {*report} == {*items} and len(search) + len(report) == count
    random.shuffle(items)
    assert split_items(items, fraction, seed) == (search, report)


def test_a_seed_decides_the_split_and_two_tasks_over_one_file_agree(tmp_path: Path) -> None:
    lines = [{"prompt": str(number), "choices": ["a", "b"], "answer": "a"} for number in range(40)]
    write(tmp_path / "data.jsonl", *lines)

    def ids(metric: str, seed: int, split: str) -> set[str]:
        read = JsonlTask.read("task", "data.jsonl", metric, folder=tmp_path, seed=seed)
        return {item.id for item in read.items(split)}

    assert ids("exact_match", 0, "report") == ids("loglikelihood", 0, "report")
    assert not ids("exact_match", 0, "report") & ids("loss", 0, "search")
    assert ids("exact_match", 0, "report") != ids("exact_match", 1, "report")


def test_a_task_without_report_items_says_how_to_get_some(tmp_path: Path) -> None:
    made = task(tmp_path, "exact_match", {"prompt": "a", "answer": "b"})
    with pytest.raises(UserError, match="report_fraction"):
        made.items("report")
    with pytest.raises(UserError, match="did you mean 'search'"):
        made.items("serch")


def test_tasks_need_no_model_library() -> None:
    code = (
        "import sys, mergefront.adapters.tasks.task_types, mergefront.adapters.evaluator\n"
        "import mergefront.adapters.local.backend\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
