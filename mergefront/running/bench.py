"""What a study file takes on this machine: one merge made and a few items of each task asked, in about a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from mergefront.adapters.counted_model import CountedModel
from mergefront.adapters.language_model import LanguageModel
from mergefront.adapters.merging.offload.memory import peak_memory
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import anchors, one_of_each_method
from mergefront.study.check import CheckReport
from mergefront.study.evaluators import is_mixture, local_backend, tasks_of
from mergefront.study.rules import DEFAULT_EVALUATIONS

FIRST_ITEMS = 4
"""Items that a task is asked first; each time twice as many, so that batches fill as they do in a search."""


@dataclass(frozen=True)
class Merging:
    """Seconds of a method's first merge, which prepares what later ones find done, and of the next."""

    first: float
    later: float


@dataclass(frozen=True)
class TaskPace:
    """``asked`` items took ``seconds``; a candidate is asked ``items``. ``tokens`` is how many tokens of answers were
    scored or written a second."""

    asked: int
    seconds: float
    items: int
    tokens: float

    @property
    def of_candidate(self) -> float:
        """Seconds that one candidate is likely to take."""
        return self.seconds / self.asked * self.items


@dataclass(frozen=True)
class Bench:
    """Seconds to load the models, those of each method's merges, each task's pace, the bytes that were in use at most
    (None where the system does not say), those that are streamed for every merge, and how many evaluations the study
    file has."""

    loading: float
    merging: Mapping[str, Merging]
    tasks: Mapping[str, TaskPace]
    peak: int | None
    streamed: int
    evaluations: int

    @property
    def of_candidate(self) -> float:
        """Seconds that one candidate is likely to take, all its items asked."""
        slowest = max(one.later for one in self.merging.values())
        return slowest + sum(pace.of_candidate for pace in self.tasks.values())

    @property
    def of_search(self) -> float:
        """Seconds that the whole search is likely to take, its proposals aside."""
        first = sum(one.first - one.later for one in self.merging.values())
        return self.loading + first + self.evaluations * self.of_candidate

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "seconds_of_candidate": self.of_candidate, "seconds_of_search": self.of_search}


def bench(report: CheckReport, seconds: float = 60.0, on_step: Callable[[str], None] = lambda _: None) -> Bench:
    """Measure a checked study file; its tasks are asked for about so many ``seconds`` together. Nothing is stored.

    ``on_step`` is told what is measured next. Raises ``StudyFileError`` if the file is not sound, ``UserError`` where
    the models are not on this machine, ``EvaluationError`` where a merge cannot be made or asked.
    """
    definition = report.definition_or_raise()
    if definition.evaluator.type != "local":
        raise UserError("bench measures models on this machine, and this study's are asked elsewhere")
    if is_mixture(definition):
        raise UserError("bench measures merges of several models; of a mixture's experts 'mergefront run' says it")
    on_step("loading the models")
    begun = time.perf_counter()
    searched = {one.name for one in definition.objectives} | {one.name for one in definition.constraints}
    tasks = [task for task in tasks_of(definition) if task.name in searched]
    backend = local_backend(definition)
    loading = time.perf_counter() - begun
    peak = peak_memory(backend.engine.device)
    merging, paces = {}, {}
    other = anchors(definition.space)[-1].recipe
    recipes = {recipe.method: recipe for recipe in one_of_each_method(definition.space)}
    for method, recipe in recipes.items():
        on_step(f"merging by {method}")
        took = []
        for each in (recipe, other, recipe):  # what is in place already would not be made again
            with (applied := backend.apply(each)):
                took.append(applied.seconds)
        merging[method] = Merging(took[0], took[2])
    with backend.apply(recipe) as model:
        for task in tasks:
            on_step(f"asking task {task.name}")
            paces[task.name] = _pace(task, model, seconds / max(1, len(tasks)))
    streamed = backend.engine.placement.streamed
    return Bench(loading, merging, paces, peak(), streamed, definition.evaluations or DEFAULT_EVALUATIONS)


def _pace(task: Task, model: LanguageModel, most: float) -> TaskPace:
    """One task's pace, from twice as many items each time for as long as ``most`` seconds allow."""
    items = task.items("search")
    count = min(FIRST_ITEMS, len(items))
    begun = time.perf_counter()
    while True:
        counted, started = CountedModel(model), time.perf_counter()
        task.score(counted, items[:count])
        ended = time.perf_counter()
        took = ended - started
        if count == len(items) or ended - begun + 2 * took > most:
            tokens = (counted.scored_tokens + counted.generated_tokens) / took
            return TaskPace(count, took, len(items), tokens)
        count = min(2 * count, len(items))
