"""Metrics over what a model writes: answers, numbers, programs, how long and how fast it writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import Generation, GenerationRequest, LanguageModel
from mergefront.adapters.tasks.conversations import asked
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.metrics.accepted_answers import AcceptedAnswers
from mergefront.adapters.tasks.metrics.answer_texts import begun_and_ended, composed, normalised, program, word_f1
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, Scored
from mergefront.adapters.tasks.metrics.numbers import same_number
from mergefront.adapters.tasks.metrics.sandbox import SandboxLimits, run_programs
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.scores.outcomes import UNANSWERED


def generations(
    model: LanguageModel, items: Sequence[Item], options: MetricOptions, wanted: Sequence[AcceptedAnswers] = ()
) -> list[Generation]:
    """What the model writes after each prompt, up to a stop string; where it heeds that, no more than is ``wanted``.

    A stop string of white space alone ends no answer before its first other character (``skip_blank_start``): such an
    answer is asked for again without it, and ended here. What is wanted knows of such ends, and is asked for once.
    """
    requests = [request_for(item, options) for item in items]
    if options.temperature > 0 or options.thinking is not None or not getattr(model, "heeds_wanted", False):
        wanted = ()  # which is known of the likeliest answers alone, from their first token on
    blank = tuple(stop for stop in options.stop if not stop.strip())
    if not options.skip_blank_start or options.thinking is not None:  # which has none to skip
        blank = ()
    stop = tuple(text for text in options.stop if text not in blank)
    if wanted:
        requests = [
            replace(request, stop=stop, wanted=one.ended_by(blank))
            for request, one in zip(requests, wanted, strict=True)
        ]
    answers = model.generate(requests)
    if not blank:
        return answers
    if wanted:
        answers = [_ended(said, blank) for said in answers]
    else:
        again = [place for place, said in enumerate(answers) if _is_blank(said)]
        longer = [replace(requests[place], stop=stop) for place in again]
        for place, said in zip(again, model.generate(longer) if longer else (), strict=True):
            answers[place] = _ended(said, blank)
    if isinstance(model, CountedModel):
        model.note(requests, answers)
    return answers


def _ended(said: Generation, blank: Sequence[str]) -> Generation:
    """An answer up to the first stop string of white space behind its first other character."""
    text = begun_and_ended(said.text, blank)
    return said if text == said.text else replace(said, text=text, finish="stop")


def _is_blank(said: Generation) -> bool:
    return not said.unanswered and said.finish == "stop" and not said.text.strip()


def request_for(item: Item, options: MetricOptions) -> GenerationRequest:
    """What a model is asked to write of an item."""
    return GenerationRequest(
        asked(item, options.chat),
        options.max_new_tokens,
        options.stop,
        item.image,
        temperature=options.temperature,
        top_p=options.top_p if options.temperature > 0 else 1.0,
        seed=item.seed,
        thinking=options.thoughts,
    )


def rated(
    model: LanguageModel,
    items: Sequence[Item],
    options: MetricOptions,
    rate: Callable[[Item, str], float],
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
    read = normalised if normalise else composed
    return read(text) in {read(answer) for answer in item.answers}


def f1(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Word F1 between the continuation and the nearest accepted answer, both normalised (as SQuAD has it)."""
    return rated(model, items, options, lambda item, text: max(word_f1(text, one) for one in item.answers)), None


def numeric(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the last number of the continuation equals that of an accepted answer, up to the tolerance."""
    return rated(
        model, items, options, lambda item, text: float(same_number(text, item.answers, options.tolerance))
    ), None


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
        answers = ask([request_for(item, options)])
        seconds.append(time.perf_counter() - begun)
        all_answered([item], answers)
    return seconds, None
