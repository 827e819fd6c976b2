"""The metric ``judge``: another model says how good an answer is, or whether it is better than an anchor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import Generation, GenerationRequest, LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.judging.options import JudgeOptions
from mergefront.adapters.tasks.judging.prompts import (
    comparing_prompt,
    grading_prompt,
    read_choice,
    read_score,
    reminded,
)
from mergefront.adapters.tasks.metrics.generation_metrics import generations, request_for
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions, Scored
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.scores.outcomes import JUDGED_ALIKE, JUDGED_TWICE

ATTEMPTS = 3
"""How often a judge is asked for a verdict; then the candidate fails."""


class Judge(Protocol):
    """Another model, which answers prompts as they are."""

    def ask(self, prompts: Sequence[str], again: bool = False) -> list[Generation]:
        """Its answers; with ``again`` those of a second time, whatever it said the first time."""


@dataclass(frozen=True)
class JudgedMetric:
    """Scores answers by a judge's verdicts, in [0, 1].

    ``reference`` has the answer of the anchor that answers are compared with (None where they are graded in a range).
    The items of ``twice`` (ids) are judged twice, to see whether the judge agrees with itself.
    """

    judge: Judge
    options: JudgeOptions
    reference: Callable[[GenerationRequest], Generation] | None = None
    twice: frozenset[str] = frozenset()

    def score(self, model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
        """The scores of items; an item without a usable answer, or an empty one, has the worst.

        Raises ``EvaluationError`` where the judge gives no usable verdict.
        """
        answers = generations(model, items, options)
        requests = [request_for(item, options) for item in items]
        graded = [place for place, said in enumerate(answers) if not said.unanswered and said.text.strip()]
        grade = self._grades if self.reference is None else self._comparisons
        found = grade([(items[place], requests[place], answers[place].text) for place in graded])
        twice = [
            place
            for place in graded
            if items[place].id in self.twice and not self._is_tie(requests[place], answers[place].text)
        ]
        second = grade([(items[place], requests[place], answers[place].text) for place in twice], again=True)
        scores = dict(zip(graded, found, strict=True))
        if isinstance(model, CountedModel):
            for place, again in zip(twice, second, strict=True):
                model.add_outcomes(requests[place], JUDGED_TWICE, *([JUDGED_ALIKE] if again == scores[place] else []))
        return [scores.get(place, self._of_nothing(requests[place])) for place in range(len(items))], None

    def probe(self, items: Sequence[Item], options: MetricOptions) -> tuple[int, int]:
        """How many answers were judged twice, and how many of them alike: those that the items accept, before any
        merge has answered."""
        asked = [(item, request_for(item, options), probe_answer(item)) for item in items]
        grade = self._grades if self.reference is None else self._comparisons
        first, second = grade(asked), grade(asked, again=True)
        return len(asked), sum(one == other for one, other in zip(first, second, strict=True))

    def _is_tie(self, request: GenerationRequest, answer: str) -> bool:
        """Whether an answer is the anchor's own, so that nobody has to be asked."""
        return self.reference is not None and self.reference(request).text.strip() == answer.strip()

    def _of_nothing(self, request: GenerationRequest) -> float:
        """The score of an answer that is not there: a tie where the anchor has none either."""
        return 0.5 if self.reference is not None and not self.reference(request).text.strip() else 0.0

    def _grades(self, asked: Sequence[tuple[Item, GenerationRequest, str]], again: bool = False) -> list[float]:
        prompts = [
            grading_prompt(self.options, _shown(request), item.answers, answer) for item, request, answer in asked
        ]
        return self._verdicts(prompts, partial(read_score, options=self.options), again)

    def _comparisons(self, asked: Sequence[tuple[Item, GenerationRequest, str]], again: bool = False) -> list[float]:
        """Each pair is judged in both orders, whose mean cancels what the judge has for the first or the second."""
        assert self.reference is not None
        prompts: list[str] = []
        compared: list[int | None] = []
        for item, request, answer in asked:
            other = self.reference(request).text
            compared.append(None if self._is_tie(request, answer) else len(prompts))
            if compared[-1] is not None:
                made = partial(comparing_prompt, self.options, _shown(request), item.answers)
                prompts += [made(answer, other), made(other, answer)]
        verdicts = self._verdicts(prompts, read_choice, again)
        return [0.5 if place is None else (verdicts[place] + 1.0 - verdicts[place + 1]) / 2.0 for place in compared]

    def _verdicts(self, prompts: Sequence[str], read: Callable[[str], float | None], again: bool) -> list[float]:
        """What the judge says to each prompt, those without a verdict put again; raises ``EvaluationError``."""
        found: dict[int, float] = {}
        unusable = ""
        for attempt in range(ATTEMPTS):
            waiting = [place for place in range(len(prompts)) if place not in found]
            said = self.judge.ask([reminded(prompts[place], attempt) for place in waiting], again) if waiting else []
            for place, answer in zip(waiting, said, strict=True):
                verdict = None if answer.unanswered else read(answer.text)
                if verdict is None:
                    unusable = answer.unanswered or answer.text[-80:]
                else:
                    found[place] = verdict
        if len(found) < len(prompts):
            raise EvaluationError(
                f"the judge gave no usable verdict on {len(prompts) - len(found)} of {len(prompts)} answers in "
                f"{ATTEMPTS} attempts, the last time {' '.join(unusable.split())!r}",
                kind="judge",
            )
        return [found[place] for place in range(len(prompts))]


def without_judge(model: LanguageModel, items: Sequence[Item], options: MetricOptions) -> Scored:
    """Raises ``UserError``: a judge is connected by whoever makes the study's evaluator."""
    raise UserError("metric judge is for tasks of a study file, which says under 'judges' how to reach the judge")


def probe_answer(item: Item) -> str:
    """What a judge is shown before a search, when no merge has answered yet."""
    return item.answers[0] if item.answers else "I do not know."


def _shown(request: GenerationRequest) -> str:
    """A prompt as a judge reads it: a conversation as one turn after the other."""
    messages = getattr(request.prompt, "messages", None)
    if messages is None:
        return str(request.prompt)
    return "\n\n".join(f"{one.role}: {one.content}" for one in messages)
