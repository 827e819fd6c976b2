"""Which expert a text is likely to be of: Branch-Train-Merge (arXiv 2208.03306).

By Bayes with the same prior for all experts, p(expert j | text) is its likelihood under j over the sum of those under
all. The mean posterior over texts weighs the experts' average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mergefront.adapters.language_model import ScoringRequest
from mergefront.adapters.tasks.task import Task


def texts_of(task: Task) -> list[ScoringRequest]:
    """What is read of each search item: its first accepted answer (the right choice) after its prompt, or the prompt
    where there is none."""
    items = task.items("search")
    made = []
    for item, question in zip(items, task.questions(items), strict=True):
        if question.answers:
            answer = question.answers[item.right[0] if item.right else 0]
            made.append(ScoringRequest(question.prompt, answer, question.image))
        elif isinstance(question.prompt, str):
            made.append(ScoringRequest("", question.prompt, question.image))
    return made


def posterior(logprobs: Mapping[str, float]) -> dict[str, float]:
    """p(expert | text) from the text's log-likelihood under each expert, with the same prior for all."""
    largest = max(logprobs.values())
    likelihoods = {name: math.exp(value - largest) for name, value in logprobs.items()}
    whole = math.fsum(likelihoods.values())
    return {name: value / whole for name, value in likelihoods.items()}


def mean_posterior(logprobs: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """The mean posterior of each expert; ``logprobs`` are by expert, task and text. Tasks with texts count alike."""
    names = list(logprobs)
    tasks = [
        [posterior(dict(zip(names, told, strict=True))) for told in zip(*of_task, strict=True)]
        for of_task in zip(*logprobs.values(), strict=True)
    ]
    means = [{name: math.fsum(one[name] for one in texts) / len(texts) for name in names} for texts in tasks if texts]
    return {name: math.fsum(one[name] for one in means) / len(means) for name in names}
