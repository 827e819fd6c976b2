"""What each metric counts as right, and how much of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import (
    Generation,
    GenerationRequest,
    LogLikelihood,
    ScoringRequest,
)
from mergefront.adapters.tasks.items import parse_item
from mergefront.adapters.tasks.metrics.answer_texts import normalised, program, word_f1
from mergefront.adapters.tasks.metrics.known_metrics import METRICS
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions
from mergefront.adapters.tasks.metrics.sandbox import missing_sandbox
from mergefront.adapters.tasks.task_types import build_task, problems_of
from mergefront.optimizer.errors import EvaluationError


class Scripted:
    """Writes what it was told to, one token a word; a character of a continuation costs 1 nat."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts
        self.generated = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.generated += len(requests)
        return [Generation(self.texts[one.prompt], len(self.texts[one.prompt].split()), "stop") for one in requests]

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return [LogLikelihood(-float(len(one.continuation)), len(one.continuation), False) for one in requests]


def score(metric: str, text: str, item: dict[str, Any], **options: Any) -> float:
    row = METRICS[metric]
    scores, _ = row.score(
        Scripted({item.get("prompt", ""): text}), [parse_item(item, row.required)], MetricOptions(**options)
    )
    return scores[0]


def test_exact_match_forgives_form_only_where_asked() -> None:
    item = {"prompt": "Capital of France?", "answer": "Paris"}
    assert score("exact_match", " Paris\n", item) == 1
    assert score("exact_match", "The paris.", item) == 0
    assert score("exact_match", "The paris.", item, normalise=True) == 1
    assert score("exact_match", "The london.", item, normalise=True) == 0


def test_f1_is_the_harmonic_mean_of_precision_and_recall_of_words() -> None:
    item = {"prompt": "?", "answer": ["the quick brown fox", "a dog"]}
    assert score("f1", "quick fox", item) == pytest.approx(2 * 1.0 * (2 / 3) / (1 + 2 / 3))
    assert score("f1", "A dog!", item) == 1
    assert score("f1", "cat", item) == 0
    assert word_f1("", "") == 1 and word_f1("", "x") == 0


def test_numeric_compares_the_last_number_up_to_the_tolerance() -> None:
    item = {"prompt": "?", "answer": "It is 42"}
    assert score("numeric", "so 12 + 30 = 42.", item) == 1 and score("numeric", "42 or 43", item) == 0
    assert score("numeric", "42.4", item, tolerance=0.01) == 1 and score("numeric", "42.5", item, tolerance=0.01) == 0


@pytest.mark.parametrize(
    ("answer", "text", "normalise"),
    [
        ("fore\u0302t", "for\u00eat", False),
        ("for\u00eat", "fore\u0302t\n", False),
        ("\uac00", "\u1100\u1161", False),
        ("l'\u00e9t\u00e9", "l\u2019\u00e9t\u00e9", True),
        ("l'\u00e9t\u00e9", "l\u00b4e\u0301te\u0301", True),
        ("Paris", "\u00ab Paris \u00bb", True),
        ("Paris", "\u201cParis\u201d \u2026", True),
        ("\u6771\u4eac", "\u300c\u6771\u4eac\u300d\u3002", True),
        ("Strasse", "STRA\u00dfE", True),
        ("\ufb01ne", "fine", True),
        ("A1", "\uff21\uff11", True),
        ("cooperate", "co\u00adoperate", True),
    ],
)
def test_one_text_in_two_encodings_is_one_answer(answer: str, text: str, normalise: bool) -> None:
    """A file that was written on one machine would be wrong for what models write."""
    item = {"prompt": "?", "answer": answer}
    assert score("exact_match", text, item, normalise=normalise) == 1
    if normalise:
        assert score("f1", text, item) == 1


def test_nothing_is_no_answer_of_punctuation_alone() -> None:
    """Normalised to nothing, "?" and "the" would be what a silent model says."""
    for answer in ("?", "the", "\u2026"):
        item = {"prompt": "?", "answer": answer}
        assert score("exact_match", "", item, normalise=True) == score("f1", "", item) == 0
        assert score("exact_match", answer, item, normalise=True) == 1


class Blank:
    """Ends where it is told to; its answers begin with white space."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked: list[tuple[str, ...]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.asked += [one.stop for one in requests]
        return [self._answer(one.stop) for one in requests]

    def _answer(self, stop: tuple[str, ...]) -> Generation:
        found = [at for one in stop if (at := self.text.find(one)) >= 0]
        return Generation(self.text[: min(found)] if found else self.text, 5, "stop" if found else "length")

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        raise AssertionError


@pytest.mark.parametrize(
    ("text", "stop", "skip", "right", "outcome"),
    [
        ("\n\nParis\nRome", ("\n",), True, 1, {}),
        ("\n\nParis\nRome", ("\n",), False, 0, {"empty": 1}),
        (" \n Paris\n\nRome", ("\n\n", "\n"), True, 1, {}),
        ("\nParis END Rome", ("\n", "END"), True, 1, {}),
        ("\nEND Paris", ("\n", "END"), True, 0, {"empty": 1}),
        ("\nParis", ("\n",), True, 1, {"cut": 1}),
        ("Paris\nRome", ("\n",), True, 1, {}),
        ("END Paris", ("END",), True, 0, {"empty": 1}),
    ],
)
def test_an_answer_that_begins_with_a_line_end_is_read(
    text: str, stop: tuple[str, ...], skip: bool, right: float, outcome: dict[str, int]
) -> None:
    """Chat models begin with an empty line, which the default stop string made of every answer."""
    model = CountedModel(Blank(text))
    items = [parse_item({"prompt": "?", "answer": "Paris"}, (("prompt",),))]
    scores, _ = METRICS["exact_match"].score(model, items, MetricOptions(stop=stop, skip_blank_start=skip))
    assert scores == [right]
    assert model.take_outcomes() == outcome


@pytest.mark.skipif(missing_sandbox() is not None, reason="this kernel has no seccomp")
def test_code_is_right_when_its_tests_pass() -> None:
    item = {"prompt": "def double(x):\n", "tests": "assert double(2) == 4"}
    assert score("code", "    return 2 * x", item) == 1
    assert score("code", "    return x", item) == 0
    assert score("code", "Here:\n```python\ndef double(x):\n    return x + x\n```\nDone.", item) == 1
    assert program("a", "b") == "ab"


@pytest.mark.skipif(missing_sandbox() is not None, reason="this kernel has no seccomp")
def test_a_program_has_the_seconds_and_the_memory_that_the_study_file_gives(tmp_path: Path) -> None:
    """Programs that need more than the default would be wrong whatever the study file says."""
    (tmp_path / "code.jsonl").write_text('{"prompt": "p", "tests": "assert len(held) == 2**28"}\n')
    config = {"type": "jsonl", "path": "code.jsonl", "metric": "code", "report_fraction": 0}
    writes = Scripted({"p": "```python\nheld = bytes(2**28)\n```"})
    for memory, right in ((256, 0.0), (1024, 1.0)):
        task = build_task("code", {**config, "memory_mb": memory}, tmp_path)
        assert task.score(writes, task.items("search")).scores == (right,)
    sleeps = Scripted({"p": "```python\nimport time\ntime.sleep(1.5)\nheld = bytes(2**28)\n```"})
    for seconds, right in ((0.1, 0.0), (30, 1.0)):
        task = build_task("code", {**config, "seconds": seconds, "memory_mb": 1024}, tmp_path)
        assert task.score(sleeps, task.items("search")).scores == (right,)


def test_latency_is_the_time_of_each_item_asked_by_itself() -> None:
    """A merge that answers slowly would look as quick as any other."""

    class Slow(Scripted):
        def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
            assert len(requests) == 1, "an item in a batch has no time of its own"
            time.sleep(0.2 if requests[0].prompt == "long" else 0.0)
            return super().generate(requests)

    items = [parse_item({"prompt": prompt}, (("prompt",),)) for prompt in ("long", "short")]
    (slow, quick), _ = METRICS["latency"].score(Slow({"long": "a", "short": "a"}), items, MetricOptions())
    assert slow >= 0.2 and quick > 0
    assert METRICS["latency"].direction == METRICS["output_tokens"].direction == "minimize"


def test_perplexity_and_bits_per_byte_are_the_loss_in_other_units() -> None:
    item = {"text": "four"}
    assert score("loss", "", item) == pytest.approx(1)
    assert score("perplexity", "", item) == pytest.approx(math.e)
    assert score("bits_per_byte", "", item) == pytest.approx(1 / math.log(2))
    assert score("bits_per_byte", "", {"text": "éé"}) == pytest.approx(0.5 / math.log(2)), "an é has two bytes"


def test_two_tasks_on_the_same_prompts_pay_for_one_answer() -> None:
    inside = Scripted({"?": "one two three"})
    model = CountedModel(inside)
    item = parse_item({"prompt": "?", "answer": "one two three"}, (("prompt",),))
    assert METRICS["exact_match"].score(model, [item], MetricOptions())[0] == [1]
    assert METRICS["output_tokens"].score(model, [item], MetricOptions())[0] == [3]
    assert inside.generated == model.requests == 1
    METRICS["latency"].score(model, [item], MetricOptions())
    assert inside.generated == 2, "latency must ask anew"


def test_a_metric_of_ones_own_is_named_by_module_and_function(tmp_path: Path) -> None:
    (tmp_path / "own_metric_of_test.py").write_text(
        "def shouting(item, text):\n    return text.isupper()\nshouting.direction = 'minimize'\n"
        "def broken(item, text):\n    return 'much'\n"
    )
    (tmp_path / "items.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    config = {"type": "jsonl", "path": "items.jsonl", "metric": "own_metric_of_test:shouting"}
    task = build_task("loud", config, tmp_path)
    assert task.direction == "minimize"
    assert task.score(Scripted({"a": "HEY", "b": "hey"}), task.items("search")).scores in ((1.0,), (0.0,))
    broken = build_task("broken", {**config, "metric": "own_metric_of_test:broken"}, tmp_path)
    with pytest.raises(EvaluationError, match="returned is 'much', not a number"):
        broken.score(Scripted({"a": "", "b": ""}), broken.items("search"))
    (problem,) = problems_of({**config, "metric": "own_metric_of_test:shoutin"}, tmp_path)
    assert "did you mean 'shouting'" in problem
    (problem,) = problems_of({**config, "metric": "exact_mach"}, tmp_path)
    assert "did you mean 'exact_match'" in problem


def test_normalised_texts_lose_case_punctuation_and_articles() -> None:
    assert normalised("  The  Cat, a Dog! ") == "cat dog"


class Graded(Scripted):
    """A continuation costs as many nats as its last character says, whatever its length, in two tokens."""

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        return [LogLikelihood(-float(one.continuation[-1]), 2, False) for one in requests]


def graded(metric: str, item: dict[str, Any]) -> tuple[float, float]:
    row = METRICS[metric]
    scores, margins = row.score(Graded({}), [parse_item(item, row.required)], MetricOptions())
    assert margins is not None
    return scores[0], margins[0]


def test_of_several_accepted_answers_the_likeliest_counts_and_margins_are_larger_for_the_better() -> None:
    item = {"prompt": "?", "answer": ["four 6", "4", "vier 8"]}
    assert graded("loss", item) == (2.0, -2.0)
    assert graded("perplexity", item) == (pytest.approx(math.exp(2.0)), -2.0)
    bits, margin = graded("bits_per_byte", {"prompt": "?", "answer": ["four 6", "4"]})
    assert bits == pytest.approx(6 / math.log(2) / 6) and margin == -bits


def test_a_choice_is_right_when_it_is_any_of_the_right_ones() -> None:
    item = {"prompt": "?", "choices": ["a 5", "b 3", "c 4"], "answer": [0, 1]}
    assert graded("loglikelihood", item) == (1.0, 1.0)
    assert graded("loglikelihood", {**item, "answer": [0, 2]}) == (0.0, -1.0)
    assert graded("loglikelihood", {**item, "answer": 1}) == (1.0, 1.0)
