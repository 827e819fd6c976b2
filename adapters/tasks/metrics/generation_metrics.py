"""Metrics over what a model writes: answers, numbers, programs, how long and how fast it writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from decimal import Decimal

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import Generation, GenerationRequest, LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.answer_texts import last_number, normalised, program, word_f1
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, Scored
from mergefront.adapters.tasks.metrics.sandbox import SandboxLimits, run_programs
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.scores.evaluation import UNANSWERED

_log = logging.getLogger(__name__)


def generations(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> list[Generation]:
    answers = model.generate([_request(item, options) for item in items])
    if len(answers) > 1 and not any(said.text.strip() for said in answers):
        _log.warning(
            "all %d answers are empty (to %.40r and others); change the stop strings %s if answers begin with one",
            len(answers),
            items[0].prompt,
            list(options.stop),
        )
    return answers


def _request(item: Item, options: MetricOptions) -> GenerationRequest:
    return GenerationRequest(item.prompt, options.max_new_tokens, options.stop, item.image)


def rated(
    model: LanguageModel, items: Sequence[Item], options: MetricOptions, rate: Callable[[Item, str], float]
) -> list[float]:
    """``rate`` of each item and what the model wrote; 0 for an item without a usable answer, which is wrong."""
    answers = generations(model, items, options)
    return [0.0 if said.unanswered else rate(item, said.text) for item, said in zip(items, answers, strict=True)]


def all_answered(items: Sequence[Item], answers: list[Generation]) -> list[Generation]:
    """The answers, for a metric that has no wrong one; raises ``EvaluationError`` at the first that is missing."""
    for item, said in zip(items, answers, strict=True):
        if said.unanswered:
            raise EvaluationError(
                f"no usable answer to {item.prompt!r:.60} ({said.unanswered}), and this metric has no score for that",
                kind=UNANSWERED,
            )
    return answers


def is_answer(text: str, item: Item, normalise: bool) -> bool:
    """Whether a text is one of the accepted answers, surrounding white space aside."""
    read = normalised if normalise else str.strip
    return read(text) in {read(answer) for answer in item.answers}


def f1(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Word F1 between the continuation and the nearest accepted answer, both normalised (as SQuAD has it)."""
    return rated(model, items, options, lambda item, text: max(word_f1(text, one) for one in item.answers)), None


def numeric(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the last number of the continuation equals that of an accepted answer, up to the tolerance."""
    return rated(model, items, options, lambda item, text: float(_same_number(text, item, options))), None


def _same_number(text: str, item: Item, options: MetricOptions) -> bool:
    said = last_number(text)
    if said is None:
        return False
    right = [number for answer in item.answers if (number := last_number(answer)) is not None]
    return any(abs(said - number) <= abs(number) * Decimal(str(options.tolerance)) for number in right)


def code(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the program that the model wrote passes the item's tests, run one after the other in a sandbox."""
    answers = generations(model, items, options)
    programs = [
        "raise SystemExit(1)" if said.unanswered else f"{program(item.prompt, said.text)}\n\n{item.tests}\n"
        for said, item in zip(answers, items, strict=True)
    ]
    outcomes = run_programs(programs, SandboxLimits(options.seconds, options.memory_mb))
    return [float(outcome.passed) for outcome in outcomes], None


def output_tokens(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """How many tokens the model writes, at most ``max_new_tokens``."""
    counts = [said.tokens for said in all_answered(items, generations(model, items, options))]
    known = [float(count) for count in counts if count is not None]
    if len(known) < len(counts):
        raise EvaluationError("the server does not say how many tokens it writes", kind="no usage")
    return known, None


def latency(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Seconds of wall time for an item asked by itself, as this machine or server answers it."""
    ask = model.generate_anew if isinstance(model, CountedModel) else model.generate
    seconds = []
    for item in items:
        begun = time.perf_counter()
        answers = ask([_request(item, options)])
        seconds.append(time.perf_counter() - begun)
        all_answered([item], answers)
    return seconds, None
