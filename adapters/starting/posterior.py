"""Which expert a text is likely to be of: Branch-Train-Merge (arXiv 2208.03306).

By Bayes with the same prior for all experts, p(expert j | text) is its likelihood under j over the sum of those under
all. The mean posterior over texts weighs the experts' average; that of a prompt says which experts should answer it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mergefront.adapters.language_model import ScoringRequest
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import UserError


def texts_of(task: Task) -> list[ScoringRequest]:
    """What is read of each search item: its first accepted answer (the right choice) after its prompt, or the prompt
    where none is known: multiple choices of the LM evaluation harness. Conversations without an answer are left out."""
    items = task.items("search")
    made = []
    for item, question in zip(items, task.questions(items), strict=True):
        answers = question.answers
        if item.right:
            answer = answers[item.right[0]]
        elif item.answers or task.verb == "generate" or len(answers) == 1:
            answer = answers[0] if answers else ""
        else:
            answer = ""
        if answer:
            made.append(ScoringRequest(question.prompt, answer, question.image))
        elif isinstance(question.prompt, str):
            made.append(ScoringRequest("", question.prompt, question.image))
    return made


def posterior(logprobs: Mapping[str, float], prior: Mapping[str, float] | None = None) -> dict[str, float]:
    """p(expert | text) from the text's log-likelihood under each expert; the same prior for all, or shares that are not
    all 0."""
    shares = dict.fromkeys(logprobs, 1.0) if prior is None else prior
    largest = max(value for name, value in logprobs.items() if shares[name] > 0)
    likelihoods = {name: shares[name] and shares[name] * math.exp(value - largest) for name, value in logprobs.items()}
    whole = math.fsum(likelihoods.values())
    return {name: value / whole for name, value in likelihoods.items()}


def routed(logprobs: Mapping[str, float], prior: Mapping[str, float], most: int) -> dict[str, float]:
    """The posterior of the ``most`` likeliest experts, those named first among equals; of all others 0."""
    of_all = posterior(logprobs, prior)
    kept = sorted(of_all, key=lambda name: -of_all[name])[:most]
    whole = math.fsum(of_all[name] for name in kept)
    return {name: value / whole if name in kept else 0.0 for name, value in of_all.items()}


def mean_posterior(logprobs: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """The mean posterior of each expert; ``logprobs`` are by expert, task and text. Tasks with texts count alike.

    Raises ``UserError`` where there are no texts."""
    names = list(logprobs)
    tasks = [
        [posterior(dict(zip(names, told, strict=True))) for told in zip(*of_task, strict=True)]
        for of_task in zip(*logprobs.values(), strict=True)
    ]
    means = [{name: math.fsum(one[name] for one in texts) / len(texts) for name in names} for texts in tasks if texts]
    if not means:
        raise UserError("no search item is a text that experts could find likely")
    return {name: math.fsum(one[name] for one in means) / len(means) for name in names}
