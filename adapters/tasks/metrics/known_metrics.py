"""Metrics: how items are asked and scored, as a registry.

A metric's scores are in its own unit, and its ``direction`` says which end of it is better: accuracy
is maximised, a loss minimised. Margins are smooth numbers behind the scores; larger is always better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mergefront.adapters.language_model import LanguageModel, LogLikelihood, ScoringRequest
from mergefront.adapters.tasks.conversations import asked
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.judging.metric import without_judge
from mergefront.adapters.tasks.metrics.accepted_answers import AcceptedAnswers
from mergefront.adapters.tasks.metrics.degeneration import degenerate
from mergefront.adapters.tasks.metrics.generation_metrics import (
    code,
    f1,
    generations,
    is_answer,
    latency,
    numeric,
    output_tokens,
)
from mergefront.adapters.tasks.metrics.metric_spec import (
    ANSWER,
    PROMPT,
    SCORED,
    TEXT,
    WRITTEN,
    MetricOptions,
    MetricSpec,
    Scored,
)
from mergefront.adapters.tasks.metrics.numbers import number_faults
from mergefront.adapters.tasks.metrics.sandbox import missing_sandbox
from mergefront.adapters.tasks.questions import following
from mergefront.optimizer.errors import EvaluationError

_LARGEST_LOSS = 300.0
"""exp of more overflows a mean; such a model has no perplexity worth telling apart."""


def exact_match(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the greedy continuation, stripped of surrounding white space, is an accepted answer, else 0.

    With ``normalise`` case, punctuation and articles do not count. The margin of a right answer is by how much its
    tokens led, that of a wrong one by how much an accepted one's next token fell short (nats).
    """
    wanted = []
    for item in items:
        prompt = asked(item, options.chat)
        drafts = dict.fromkeys(following(prompt, answer, options.delimiter) for answer in item.answers)
        wanted.append(AcceptedAnswers(item.answers, options.normalise, tuple(drafts)))
    answers = generations(model, items, options, wanted)
    scores = [
        float(not said.unanswered and is_answer(said.text, item, options.normalise))
        for item, said in zip(items, answers, strict=True)
    ]
    known = [one.margins for one in answers if one.margins is not None]
    if not options.margins or len(known) < len(answers):
        return scores, None
    return scores, [
        one.lead if score else min(0.0, -one.lead if one.shortfall is None else one.shortfall)
        for score, one in zip(scores, known, strict=True)
    ]


def accuracy(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """1 where the likeliest choice is right, else 0; the margin is the log-likelihood of the best
    right choice minus that of the best wrong one (per character when length-normalised)."""
    scores, margins = [], []
    for item, several in zip(items, _likelihoods(model, items, options, [item.choices for item in items]), strict=True):
        values = [one.logprob for one in several]
        if options.length_normalised:
            values = [value / len(choice) for value, choice in zip(values, item.choices, strict=True)]
        scores.append(float(values.index(max(values)) in item.right))
        right = max(values[index] for index in item.right)
        margins.append(right - max(value for index, value in enumerate(values) if index not in item.right))
    return scores, margins


def loss(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Negative log-likelihood per token (nats) of the text, or of the answer after the prompt; of several
    accepted answers (or right choices) the likeliest counts. The margin is the loss with its sign turned."""
    likelihoods = _likelihoods(model, items, options, [item.answers for item in items])
    margins = [max(per_token(one) for one in several) for several in likelihoods]
    return [-margin for margin in margins], margins


def perplexity(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """exp of an item's loss per token: how many tokens the model hesitates between. Its mean over items is
    ruled by the worst ones; ``loss`` is the steadier objective."""
    losses, margins = loss(model, items, options)
    return [math.exp(min(value, _LARGEST_LOSS)) for value in losses], margins


def bits_per_byte(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Negative log2-likelihood per UTF-8 byte of the text or answer: comparable between tokenizers."""
    scores = []
    for item, several in zip(items, _likelihoods(model, items, options, [item.answers for item in items]), strict=True):
        sizes = [len(text.encode("utf-8")) for text in item.answers]
        scores.append(min(-one.logprob / (math.log(2) * size) for one, size in zip(several, sizes, strict=True)))
    return scores, [-score for score in scores]


def per_token(likelihood: LogLikelihood) -> float:
    """Mean log-likelihood of a token, in nats."""
    return likelihood.logprob / likelihood.tokens


def _likelihoods(
    model: LanguageModel, items: Sequence[Item], options: MetricOptions, texts: Sequence[Sequence[str]]
) -> list[list[LogLikelihood]]:
    """The log-likelihood of each of an item's ``texts`` after its prompt, asked in one go."""
    requests = [
        ScoringRequest(prompt, following(prompt, text, options.delimiter), item.image)
        for item, several in zip(items, texts, strict=True)
        for prompt in [asked(item, options.chat)]
        for text in several
    ]
    answers = model.loglikelihood(requests)
    for request, answer in zip(requests, answers, strict=True):
        if answer.tokens == 0:
            # Its log-likelihood of 0 would win against every other choice.
            raise EvaluationError(
                f"{request.continuation!r} has no tokens in this model's tokenizer, so it cannot be scored",
                kind="no tokens",
            )
        if not math.isfinite(answer.logprob):
            raise EvaluationError(
                f"the log-likelihood of {request.continuation!r} is {answer.logprob}", kind="not finite"
            )
    in_order = iter(answers)
    return [[next(in_order) for _ in several] for several in texts]


METRICS: Mapping[str, MetricSpec] = {
    metric.name: metric
    for metric in (
        MetricSpec(
            "exact_match", "generate", "maximize", ANSWER, exact_match, (*WRITTEN, *SCORED, "normalise", "margins")
        ),
        MetricSpec(
            "loglikelihood",
            "loglikelihood",
            "maximize",
            (("prompt", "choices", "answer"),),
            accuracy,
            (*SCORED, "length_normalised"),
        ),
        MetricSpec("loss", "loglikelihood", "minimize", TEXT, loss, SCORED),
        MetricSpec("perplexity", "loglikelihood", "minimize", TEXT, perplexity, SCORED),
        MetricSpec("bits_per_byte", "loglikelihood", "minimize", TEXT, bits_per_byte, SCORED),
        MetricSpec("f1", "generate", "maximize", ANSWER, f1),
        MetricSpec("numeric", "generate", "maximize", ANSWER, numeric, (*WRITTEN, "tolerance"), faults=number_faults),
        MetricSpec(
            "code",
            "generate",
            "maximize",
            (("prompt", "tests"),),
            code,
            (*WRITTEN, "seconds", "memory_mb"),
            missing_sandbox,
        ),
        MetricSpec(
            "judge",
            "generate",
            "maximize",
            PROMPT,
            without_judge,
            (*WRITTEN, "judge"),
            needs=("judge", "max_new_tokens", "stop"),
        ),
        # Nobody knows the longest sound answer but the user, and a stop string hides whatever follows it.
        MetricSpec("degenerate", "generate", "minimize", PROMPT, degenerate, needs=("max_new_tokens", "stop")),
        MetricSpec("output_tokens", "generate", "minimize", PROMPT, output_tokens),
        MetricSpec("latency", "generate", "minimize", PROMPT, latency),
    )
}
"""Metrics by name."""
