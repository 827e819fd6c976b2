"""The evaluator over a backend: make the merge, ask the merged model, return its scores on tasks.

What goes wrong with one candidate becomes an ``EvaluationError``; wrong input stays a ``UserError``.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from mergefront.adapters.backend import Backend
from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.task import Task
from mergefront.adapters.tasks.user_code import described
from mergefront.optimizer.errors import REFUSED, EvaluationError, MergefrontError, UserError, did_you_mean
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import (
    MONEY,
    Evaluation,
    EvaluationRequest,
    Evaluator,
    ItemScores,
    Race,
    RaceResult,
)
from mergefront.optimizer.scores.objectives import COMPUTED, DELTA_L1
from mergefront.optimizer.scores.outcomes import CUT, EMPTY, OUTCOMES, UNANSWERED, outcome_text, reasons

_log = logging.getLogger(__name__)
PEAK_BYTES = "merge_peak_bytes"


Before = Callable[[Backend[LanguageModel], Sequence[str], str], None]
"""What is done before a recipe is merged, for the wanted tasks and the split."""


def nothing(backend: Backend[LanguageModel], wanted: Sequence[str], split: str) -> None:
    """What most studies do before a merge."""


class TaskEvaluator:
    """Scores a recipe on the tasks that the requested objectives name.

    An objective is a task's name, ``delta_l1``, or ``parameters`` where the backend's merges differ in them. The merge
    is made once per evaluation; its scores are the means of the tasks' item scores, with the standard errors of those
    means. ``watch`` starts to measure the memory that making a merge takes (see ``peak_memory``); ``details`` have the
    bytes under ``PEAK_BYTES``.
    ``before`` is called before each merge with the backend, the wanted tasks and the split. ``paid`` tells what was
    paid for answers so far, in the money of the backend's prices.
    """

    def __init__(
        self,
        backend: Backend[LanguageModel],
        tasks: Sequence[Task] | Mapping[str, Task],
        watch: Callable[[], Callable[[], int | None]] | None = None,
        before: Before = nothing,
        *,
        writes_all: bool = False,
        paid: Callable[[], float] | None = None,
    ) -> None:
        self.backend = backend
        self._paid = paid
        self._watch = watch
        self._before = before
        named = tasks if isinstance(tasks, Mapping) else {task.name: task for task in tasks}
        self.tasks: dict[str, Task] = dict(named)
        self._writes_all = writes_all
        self._warned: set[str] = set()

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        """One evaluation on the items of ``request.split``.

        ``seconds`` has "merge", "score", "total" and one entry per task; ``cost`` counts "items", "requests",
        "scored_tokens" and "generated_tokens", and "money" where answers have a price. Raises ``UserError`` for an
        objective that is no task, ``EvaluationError`` when merging or scoring fails, a score is not finite, or a larger
        share of a task's items than its ``max_unanswered`` has no usable answer.
        """
        computed = [name for name in COMPUTED if name in request.objectives and name not in self.tasks]
        wanted = [name for name in request.objectives if name not in computed]
        for name in wanted:
            if name not in self.tasks:
                known = [*self.tasks, DELTA_L1]
                raise UserError(f"objective {name!r} is neither a task nor {DELTA_L1} {did_you_mean(name, known)}")
        items_of = {name: self.tasks[name].items(request.split) for name in wanted}
        started = time.perf_counter()
        paid_before = 0.0 if self._paid is None else self._paid()
        details: dict[str, Any] = {}
        with _failures("what comes before the merge"):
            self._before(self.backend, wanted, request.split)
        with ExitStack() as merged:
            with _failures("merging"):
                peak = None if self._watch is None else self._watch()
                applied = self.backend.apply(recipe)
                model = CountedModel(merged.enter_context(applied), writes_all=self._writes_all)
                asked = _Asked(model, {"merge": applied.seconds})
                if peak is not None:
                    details[PEAK_BYTES] = peak()
            exact = {name: _known(name, getattr(applied, name, None)) for name in computed}
            if request.race is not None and wanted:
                result = self._race(request.race, asked, items_of, exact)
                items = dict(result.items)
                details |= result.details
                scores = {name: one.mean for name, one in result.estimates.items()}
                errors = {name: one.standard_error for name, one in result.estimates.items()}
                for name in wanted:
                    self._check_answered(name, asked)
            else:
                items = {}
                for name in wanted:
                    items[name] = self._score(name, asked, items_of[name])
                    self._check_answered(name, asked)
                scores = {name: scored.mean for name, scored in items.items()}
                errors = {name: scored.standard_error for name, scored in items.items() if len(scored.scores) > 1}
        scores.update(exact)
        errors.update(dict.fromkeys(exact, 0.0))
        seconds = {
            **asked.seconds,
            "total": time.perf_counter() - started,
            "score": sum(asked.seconds[name] for name in wanted),
        }
        cost = {
            "items": float(sum(len(scored.scores) for scored in items.values())),
            "requests": float(asked.model.requests),
            "scored_tokens": float(asked.model.scored_tokens),
            "generated_tokens": float(asked.model.generated_tokens),
            **({} if self._paid is None else {MONEY: self._paid() - paid_before}),
        }
        if wanted:
            details[OUTCOMES] = {name: dict(counts) for name, counts in asked.outcomes.items()}
        return Evaluation(scores, errors, items, seconds, cost, details)

    def _score(self, name: str, asked: _Asked, items: Sequence[Item]) -> ItemScores:
        """One task's item scores; what it took and what came of the items is added to ``asked``."""
        begun = time.perf_counter()
        with _failures(f"task {name!r}"):
            scored = self.tasks[name].score(asked.model, items)
            _check_finite(scored)
        asked.seconds[name] = asked.seconds.get(name, 0.0) + time.perf_counter() - begun
        answers = len(scored.scores) * getattr(self.tasks[name], "samples", 1)
        asked.outcomes.setdefault(name, Counter()).update(asked=answers, **asked.model.take_outcomes())
        return scored

    def _check_answered(self, name: str, asked: _Asked) -> None:
        """Warns, once a task, of what happened to the items; raises ``EvaluationError`` where more of them have no
        usable answer than the task forgives."""
        counts, most = asked.outcomes[name], self.tasks[name].max_unanswered
        missing, why = counts[UNANSWERED], f" ({reasons(counts)})" if counts[UNANSWERED] else ""
        if missing / counts["asked"] > most:
            raise EvaluationError(
                f"task {name!r}: {missing} of {counts['asked']} items have no usable answer{why}; "
                f"max_unanswered is {most:g}",
                kind=UNANSWERED,
            )
        # Short answers of base models are cut off, and some are empty: the status has their numbers.
        usual = {CUT, EMPTY} if counts[EMPTY] < counts["asked"] else {CUT}
        text = outcome_text({key: count for key, count in counts.items() if key not in usual})
        if text and name not in self._warned:
            self._warned.add(name)
            _log.warning("task %s: %s%s", name, text, why)

    def _race(
        self,
        race: Race,
        asked: _Asked,
        items_of: Mapping[str, Sequence[Item]],
        exact: Mapping[str, float],
    ) -> RaceResult:
        run = race.start({name: [item.id for item in items] for name, items in items_of.items()}, exact)
        while (batch := run.batch()) is not None:
            for name, indices in batch.items():
                if indices:
                    run.tell(name, indices, self._score(name, asked, [items_of[name][index] for index in indices]))
        return run.result()


class LenientEvaluator:
    """Of merges that nobody checked together with the backend: what it refuses fails that merge alone.

    But for sums of task vectors, which every backend can make: who refuses those refuses all.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        """See ``Evaluator``."""
        try:
            return self._evaluator.evaluate(recipe, request)
        except UserError as error:
            if recipe.method == "task_arithmetic":
                raise
            raise EvaluationError(str(error), kind=REFUSED) from error


@dataclass
class _Asked:
    """One candidate's model, and by task the seconds that it took and the outcomes of its items."""

    model: CountedModel
    seconds: dict[str, float]
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turns whatever goes wrong with a candidate into an ``EvaluationError`` of the right kind."""
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"{doing}: {error}", kind=error.kind) from error
    except MergefrontError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise EvaluationError(f"{doing}: {_memory_advice(doing, error)}", kind="out of memory") from error
        raise EvaluationError(f"{doing}: {described(error)}", kind=type(error).__name__) from error


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's allocators and the libraries under it say in a plain ``RuntimeError``."""


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, an accelerator or torch's CPU allocator ran out of memory."""
    torch = sys.modules.get("torch")
    accelerator = getattr(torch, "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, accelerator)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)


def _memory_advice(doing: str, error: BaseException) -> str:
    """What ran out, and what to set: of a merge weights are held, of a task one item alone does not fit."""
    said = str(error).partition("\n")[0] or type(error).__name__
    if doing == "merging":
        return f"out of memory ({said:.200}); a lower backend: {{max_memory: ...}} streams more of the weights"
    return (
        f"out of memory with one item at a time ({said:.200}); leave more beside the weights with a lower backend: "
        "{max_memory: ...}, or give the task shorter items or a lower max_new_tokens"
    )


def _check_finite(scored: ItemScores) -> None:
    for item, score in zip(scored.ids, scored.scores, strict=True):
        if not math.isfinite(score):
            raise EvaluationError(f"item {item} scored {score}", kind="not finite")


def _known(name: str, measured: float | None) -> float:
    if measured is None:
        raise UserError(f"this backend does not see the weights, so it cannot measure {name}; drop that objective")
    return float(measured)
