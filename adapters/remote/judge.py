"""Judges at OpenAI-compatible endpoints, and the answers of the anchors that they compare with.

What a judge says is kept by exact request, and an anchor's answers by the study's content: no verdict is paid for
twice, and a resumed study has the same scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from mergefront.adapters.backend import Backend
from mergefront.adapters.evaluator import Before
from mergefront.adapters.language_model import Generation, GenerationRequest, LanguageModel
from mergefront.adapters.remote.http.cache import MemoryCache, ResponseCache, request_key
from mergefront.adapters.remote.http.client import HttpClient, all_of
from mergefront.adapters.remote.openai.token_count import token_counter
from mergefront.adapters.remote.openai.wire import OpenAIWire
from mergefront.adapters.remote.server_backend import client_of
from mergefront.adapters.remote.settings import JudgeSection
from mergefront.adapters.tasks.items import Item
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.adapters.tasks.judging.metric import JudgedMetric
from mergefront.adapters.tasks.judging.options import JudgeOptions
from mergefront.adapters.tasks.metrics.generation_metrics import generations, request_for
from mergefront.adapters.tasks.metrics.metric_spec import MetricOptions
from mergefront.adapters.tasks.task import Task, seeded_order
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.seeding import derive_seed

_FEWEST_TWICE = 4
_PROBED = 3
"""Items on which a judge is tried before a study."""


class EndpointJudge:
    """A ``Judge``: one model at one endpoint, asked in chat at temperature 0."""

    def __init__(self, client: HttpClient, section: JudgeSection, root: Path) -> None:
        self._client = client
        self._longest = section.max_tokens
        count = None if section.tokenizer is None else token_counter(root / section.tokenizer)
        self._wires = []
        for state in ("", "again"):
            wire = OpenAIWire(
                client,
                section.model,
                mode=section.mode,
                system=section.system,
                request=section.request,
                count=count,
            )
            wire.state = state  # a second verdict is kept beside the first
            self._wires.append(wire)

    def ask(self, prompts: Sequence[str], again: bool = False) -> list[Generation]:
        wire = self._wires[again]
        try:
            return self._client.run(all_of(wire.generate(prompt, self._longest, ()) for prompt in prompts))
        except EvaluationError as error:
            raise EvaluationError(f"the judge: {error}", kind=error.kind) from None


class ReferenceAnswers:
    """An anchor's answers, generated once and kept; ``source`` tells them from those of other models."""

    def __init__(self, recipe: Recipe, source: str, cache: ResponseCache) -> None:
        self.recipe = recipe
        self._source = f"answers {source}"
        self._cache = cache
        self._known: dict[GenerationRequest, Generation] = {}

    def __call__(self, request: GenerationRequest) -> Generation:
        """The answer to a request of items that were made sure of."""
        return self._known[request]

    def ensure(self, backend: Backend[LanguageModel], items: Sequence[Item], options: MetricOptions) -> None:
        """Have the anchor answer the items that it has not answered yet."""
        missing = [item for item in items if not self._is_known(request_for(item, options))]
        if not missing:
            return
        with backend.apply(self.recipe) as model:
            answers = generations(model, missing, options)
        for item, said in zip(missing, answers, strict=True):
            request = request_for(item, options)
            # Of two processes that asked at once the first one's answer counts for both.
            self._cache.keep(self._key(request), self._source, json.dumps(asdict(said)), (0, 0, 0))
            self._is_known(request)

    def _is_known(self, request: GenerationRequest) -> bool:
        if request not in self._known:
            found = self._cache.find(self._key(request))
            if found is None:
                return False
            self._known[request] = Generation(**json.loads(found))
        return True

    def _key(self, request: GenerationRequest) -> str:
        return request_key(self._source, "ANSWER", self.recipe.digest, asdict(request))


def _judged_twice(task: JsonlTask, seed: int) -> frozenset[str]:
    """The items, chosen by seed, that are judged twice: an eighth of each split, and at least ``_FEWEST_TWICE``."""
    found: set[str] = set()
    for items in task.splits.values():
        ordered = seeded_order(items, derive_seed(seed, "judged twice"))
        found |= {item.id for item in ordered[: max(_FEWEST_TWICE, len(ordered) // 8)]}
    return frozenset(found)


def judge_options(task: Task) -> JudgeOptions | None:
    """How a task is judged, if it is."""
    is_judged = isinstance(task, JsonlTask) and task.metric.name == "judge"
    return task.metric_options.judge if is_judged and isinstance(task, JsonlTask) else None


def judge_problems(options: JudgeOptions, judges: Mapping[str, JudgeSection], anchors: Sequence[str]) -> list[str]:
    """What a task's judge lacks: an entry under ``judges``, an anchor of that name."""
    problems = []
    if options.by not in judges:
        problems.append(f"judge.by is {options.by!r}; name one of 'judges' {did_you_mean(options.by, judges)}")
    if options.against is not None and anchors and options.against not in anchors:
        problems.append(
            f"judge.against is {options.against!r}; name an anchor {did_you_mean(options.against, anchors)}"
        )
    return problems


@contextmanager
def connected_judges(
    tasks: Sequence[Task],
    judges: Mapping[str, JudgeSection],
    anchors: Mapping[str, Recipe],
    root: Path,
    cache: ResponseCache,
    seed: int,
    source: str,
) -> Iterator[tuple[list[Task], Before]]:
    """Tasks whose judges can be asked while the block lasts, and what has to be done before a merge is made.

    ``anchors`` are the study's, by name; ``source`` says whose answers theirs are. Raises ``UserError`` for a judge
    that cannot be reached as its section says.
    """
    references: dict[str, ReferenceAnswers] = {}
    connected: list[Task] = []
    with ExitStack() as clients:
        known: dict[str, EndpointJudge] = {}
        for task in tasks:
            options = judge_options(task)
            if options is None or not isinstance(task, JsonlTask):
                connected.append(task)
                continue
            if problems := judge_problems(options, judges, list(anchors)):
                raise UserError("\n".join(f"task {task.name!r}: {problem}" for problem in problems))
            if options.by not in known:
                client = clients.enter_context(closing(_client(options.by, judges[options.by], cache, seed)))
                known[options.by] = EndpointJudge(client, judges[options.by], root)
            if options.against is not None:
                references[task.name] = ReferenceAnswers(anchors[options.against], source, cache)
            judged = JudgedMetric(known[options.by], options, references.get(task.name), _judged_twice(task, seed))
            connected.append(replace(task, metric=replace(task.metric, score=judged.score)))
        asked = {task.name: task for task in connected if isinstance(task, JsonlTask)}

        def before(backend: Backend[LanguageModel], wanted: Sequence[str], split: str) -> None:
            for name in wanted:
                if name in references:
                    references[name].ensure(backend, asked[name].items(split), asked[name].metric_options)

        yield connected, before


def try_judge(
    section: JudgeSection, tasks: Sequence[JsonlTask], root: Path, cache: ResponseCache | None, seed: int
) -> str:
    """A line on whether a judge gives verdicts and agrees with itself, from a few answers judged twice.

    Raises ``UserError`` where it gives none.
    """
    name = next(options.by for task in tasks if (options := judge_options(task)) is not None)
    asked = agreed = 0
    try:
        with closing(_client(name, section, MemoryCache() if cache is None else cache, seed)) as client:
            judge = EndpointJudge(client, section, root)
            for task in tasks:
                options = judge_options(task)
                assert options is not None
                other = None if options.against is None else _no_answer
                metric = JudgedMetric(judge, options, other)
                count, same = metric.probe(task.items("search")[:_PROBED], task.metric_options)
                asked, agreed = asked + count, agreed + same
    except EvaluationError as error:
        raise UserError(str(error)) from None
    agreement = f"of {asked} answers that it judged twice it judged {agreed} alike"
    return f"judge {name} ({section.model}) gives verdicts; {agreement}"


def _no_answer(_request: GenerationRequest) -> Generation:
    """What a probe's answers are compared with."""
    return Generation("There is no answer.", None, "stop")


def _client(name: str, section: JudgeSection, cache: ResponseCache, seed: int) -> HttpClient:
    return client_of(section, cache, seed, f"judge {section.url} {section.model}", where=f"judges.{name}")
