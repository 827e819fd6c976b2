"""Metrics over what a model writes: answers, numbers, programs, how long and how fast it writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from decimal import Decimal

from mergefront.adapters.language_model import CountedModel, Generation, GenerationRequest, LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.answer_texts import last_number, normalised, program, word_f1
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, Scored
from mergefront.adapters.tasks.metrics.sandbox import SandboxLimits, run_programs

_log = logging.getLogger(__name__)


def generations(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> list[Generation]:
    answers = model.generate(
        [GenerationRequest(item.prompt, options.max_new_tokens, options.stop, item.image) for item in items]
    )
    if len(answers) > 1 and not any(said.text.strip() for said in answers):
        _log.warning(
            "all %d answers are empty (to %.40r and others); change the stop strings %s if answers begin with one",
            len(answers),
            items[0].prompt,
            list(options.stop),
        )
    return answers


def is_answer(text: str, item: Item, normalise: bool) -> bool:
    """Whether a text is one of the accepted answers, surrounding white space aside."""
    read = normalised if normalise else str.strip
    return read(text) in {read(answer) for answer in item.answers}


def f1(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Word F1 between the continuation and the nearest accepted answer, both normalised (as SQuAD has it)."""
    answers = generations(model, items, options)
    return [
        max(word_f1(said.text, one) for one in item.answers) for said, item in zip(answers, items, strict=True)
    ], None


def numeric(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the last number of the continuation equals that of an accepted answer, up to the tolerance."""
    answers = generations(model, items, options)
    return [float(_same_number(said.text, item, options)) for said, item in zip(answers, items, strict=True)], None


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
        f"{program(item.prompt, said.text)}\n\n{item.tests}\n" for said, item in zip(answers, items, strict=True)
    ]
    outcomes = run_programs(programs, SandboxLimits(options.seconds, options.memory_mb))
    return [float(outcome.passed) for outcome in outcomes], None


def output_tokens(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """How many tokens the model writes, at most ``max_new_tokens``."""
    return [float(said.tokens) for said in generations(model, items, options)], None


def latency(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Seconds of wall time for an item asked by itself, as this machine or server answers it."""
    asked = model.model if isinstance(model, CountedModel) else model
    seconds = []
    for item in items:
        begun = time.perf_counter()
        generations(asked, [item], options)
        seconds.append(time.perf_counter() - begun)
    return seconds, None
