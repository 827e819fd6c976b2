"""The evaluator over a backend: make the merge, ask the merged model, return its scores on tasks.

What goes wrong with one candidate becomes an ``EvaluationError``; wrong input stays a ``UserError``.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from mergefront.adapters.backend import Backend
from mergefront.adapters.language_model import CountedModel, LanguageModel
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import EvaluationError, MergefrontError, UserError, did_you_mean
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores, Race, RaceResult

DELTA_L1 = "delta_l1"
"""The objective that no task scores: the L1 norm of merged minus base weights, from the merge itself."""


class TaskEvaluator:
    """Scores a recipe on the tasks that the requested objectives name.

    An objective is a task's name, or ``delta_l1``. The merge is made once per evaluation; its scores
    are the means of the tasks' item scores, with the standard errors of those means.
    """

    def __init__(self, backend: Backend[LanguageModel], tasks: Sequence[Task] | Mapping[str, Task]) -> None:
        self.backend = backend
        named = tasks if isinstance(tasks, Mapping) else {task.name: task for task in tasks}
        self.tasks: dict[str, Task] = dict(named)

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        """One evaluation on the items of ``request.split``.

        ``seconds`` has "merge", "score", "total" and one entry per task; ``cost`` counts "items",
        "requests", "scored_tokens" and "generated_tokens". Raises ``UserError`` for an objective that is no
        task, ``EvaluationError`` when merging or scoring fails or a score is not finite.
        """
        wanted = [name for name in request.objectives if name != DELTA_L1]
        for name in wanted:
            if name not in self.tasks:
                known = [*self.tasks, DELTA_L1]
                raise UserError(f"objective {name!r} is neither a task nor {DELTA_L1} {did_you_mean(name, known)}")
        items_of = {name: self.tasks[name].items(request.split) for name in wanted}
        started = time.perf_counter()
        seconds: dict[str, float] = {}
        with ExitStack() as merged:
            with _failures("merging"):
                applied = self.backend.apply(recipe)
                model = CountedModel(merged.enter_context(applied))
            exact = {DELTA_L1: _known(applied.delta_l1)} if DELTA_L1 in request.objectives else {}
            seconds["merge"] = applied.seconds
            if request.race is not None and wanted:
                result = self._race(request.race, model, items_of, exact, seconds)
                items, details = dict(result.items), dict(result.details)
                scores = {name: one.mean for name, one in result.estimates.items()}
                errors = {name: one.standard_error for name, one in result.estimates.items()}
            else:
                items = {name: self._score(name, model, items_of[name], seconds) for name in wanted}
                details = {}
                scores = {name: scored.mean for name, scored in items.items()}
                errors = {name: scored.standard_error for name, scored in items.items() if len(scored.scores) > 1}
        scores.update(exact)
        errors.update(dict.fromkeys(exact, 0.0))
        seconds["total"] = time.perf_counter() - started
        seconds["score"] = sum(seconds[name] for name in wanted)
        cost = {
            "items": float(sum(len(scored.scores) for scored in items.values())),
            "requests": float(model.requests),
            "scored_tokens": float(model.scored_tokens),
            "generated_tokens": float(model.generated_tokens),
        }
        return Evaluation(scores, errors, items, seconds, cost, details)

    def _score(self, name: str, model: LanguageModel, items: Sequence[Item], seconds: dict[str, float]) -> ItemScores:
        """One task's item scores; the wall time is added to ``seconds``."""
        begun = time.perf_counter()
        with _failures(f"task {name!r}"):
            scored = self.tasks[name].score(model, items)
            _check_finite(scored)
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begun
        return scored

    def _race(
        self,
        race: Race,
        model: LanguageModel,
        items_of: Mapping[str, Sequence[Item]],
        exact: Mapping[str, float],
        seconds: dict[str, float],
    ) -> RaceResult:
        run = race.start({name: [item.id for item in items] for name, items in items_of.items()}, exact)
        while (batch := run.batch()) is not None:
            for name, indices in batch.items():
                if indices:
                    asked = [items_of[name][index] for index in indices]
                    run.tell(name, indices, self._score(name, model, asked, seconds))
        return run.result()


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turns whatever goes wrong with a candidate into an ``EvaluationError`` of the right kind."""
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"{doing}: {error}", kind=error.kind) from error
    except MergefrontError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise EvaluationError(
                f"{doing}: out of memory ({error}); a smaller model, batch or dtype would fit", kind="out of memory"
            ) from error
        name = type(error).__name__
        raise EvaluationError(f"{doing}: {name}: {error}", kind=name) from error


def out_of_memory(error: Exception) -> bool:
    """Whether Python, an accelerator or torch's CPU allocator ran out of memory."""
    torch = sys.modules.get("torch")
    accelerator = getattr(torch, "OutOfMemoryError", MemoryError)
    return isinstance(error, (MemoryError, accelerator)) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _check_finite(scored: ItemScores) -> None:
    for item, score in zip(scored.ids, scored.scores, strict=True):
        if not math.isfinite(score):
            raise EvaluationError(f"item {item} scored {score}", kind="not finite")


def _known(delta_l1: float | None) -> float:
    if delta_l1 is None:
        raise UserError(f"this backend does not see the weights, so it cannot measure {DELTA_L1}; drop that objective")
    return delta_l1
