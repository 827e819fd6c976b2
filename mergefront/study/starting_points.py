"""Start points: merges that something else than an evaluation recommends, evaluated right after the anchors.

Their weights are found when a study begins, and stored with it. They cost budget as every merge does, and have no part
in what objectives are normalised by. A space can be centred on their weights, evaluated or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.language_model import Chat, GenerationRequest, Message
from mergefront.adapters.merging.vocabulary import TokenizerChoice
from mergefront.adapters.tasks.items import Item, read_items
from mergefront.optimizer.errors import UserError, did_you_mean
from mergefront.optimizer.recipes.anchors import DEFAULT_ANCHORS, refuses_weights
from mergefront.optimizer.recipes.grouping import CoefficientName, parameter_of
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluator
from mergefront.study.definition import StudyDefinition
from mergefront.study.evaluators import local_backend, tasks_of
from mergefront.study.preflight.findings import Findings

if TYPE_CHECKING:
    from mergefront.adapters.local.backend import LocalBackend

_log = logging.getLogger(__name__)
ALIGNED = "aligned"
PROMPTS = 8
"""Of each expert, where weights are learned from prompts."""
_LONGEST_ANSWER = 32
_OF_TEXTS = ("jsonl", "lm_eval")
"""Types of tasks whose items are prompts."""
OpenBackend = Callable[[], "LocalBackend"]
Weights = Mapping[str, float]


@dataclass(frozen=True)
class StartPoint:
    """How the weights of one start point are found, by the names of coefficients; raises ``UserError``.

    ``reads`` completes the sentence "it reads ..., which no server shows".
    """

    reads: str
    weights: Callable[[StudyDefinition, OpenBackend], Weights]


def _inverse_norm(definition: StudyDefinition, open_backend: OpenBackend) -> Weights:
    """Inverse norms of task vectors, normalised (NAN, arXiv 2505.16148, known from its abstract)."""
    from mergefront.adapters.merging.importance import inverse_norm_weights, opened_alike, task_vector_norms

    space, folder = definition.space, definition.places.folder
    assert space.base_model is not None
    folders = {name: folder(path) for name, path in space.models.items()}
    tokenizer = TokenizerChoice.read(definition.tokenizer_source)
    base, experts = opened_alike(folder(space.base_model), folders, definition.modalities, tokenizer)
    return _per_expert(inverse_norm_weights(task_vector_norms(base, experts)))


def _posterior(definition: StudyDefinition, open_backend: OpenBackend) -> Weights:
    """The mean posterior of each expert over the search items (Branch-Train-Merge, arXiv 2208.03306)."""
    from mergefront.adapters.starting.posterior import mean_posterior, texts_of

    space, backend = definition.space, open_backend()
    texts = [texts_of(task) for task in tasks_of(definition) if task.verb in ("generate", "loglikelihood")]
    told: dict[str, list[list[float]]] = {}
    for name in space.models:
        alone = {f"weight[{other}]": float(other == name) for other in space.models}
        with backend.apply(space.make("task_arithmetic", alone)) as model:
            told[name] = [[one.logprob for one in model.loglikelihood(requests)] for requests in texts]
    return _per_expert(mean_posterior(told))


def _aligned(definition: StudyDefinition, open_backend: OpenBackend) -> Weights:
    """Weights with which hidden states and next tokens follow each expert's (Expert Merging, arXiv 2509.25712)."""
    from mergefront.adapters.starting.alignment import Aligner, AlignmentSettings

    aligner = Aligner(open_backend(), definition.space, AlignmentSettings(steps=definition.aligned["steps"]))
    return aligner.learn([aligner.lesson(name, _prompts(definition, name)) for name in definition.space.models])


def _prompts(definition: StudyDefinition, expert: str) -> list[GenerationRequest]:
    """The prompts on which an expert is followed, and how long its answers may be."""
    file = definition.aligned["prompts"].get(expert)
    if file is not None:
        items = read_items(definition.root / file, file, _KEYS).items[:PROMPTS]
        return [GenerationRequest(_asked(item), _LONGEST_ANSWER) for item in items]
    task = next(task for task in tasks_of(definition) if task.name == expert)
    questions = [one for one in task.questions(task.items("search")[:PROMPTS]) if not one.image]
    if not questions:
        raise UserError(f"every item of task {expert!r} has an image; give search.aligned.prompts: {{{expert}: FILE}}")
    most = _LONGEST_ANSWER
    return [
        GenerationRequest(one.prompt or one.answers[0], min(one.new_tokens or most, most), one.stop)
        for one in questions
    ]


_KEYS = (("prompt",), ("messages",), ("text",))


def _asked(item: Item) -> str | Chat:
    if item.messages:
        return Chat(tuple(Message(one.role, one.content) for one in item.messages))
    return item.prompt or item.answers[0]


START_POINTS: Mapping[str, StartPoint] = {
    "inverse-norm": StartPoint("the experts' weights", _inverse_norm),
    "posterior-weighted": StartPoint("how likely each expert finds the items", _posterior),
    ALIGNED: StartPoint("the experts' hidden states", _aligned),
}
"""By the names that ``search.anchors`` has for them."""


def _per_expert(weights: Weights) -> dict[str, float]:
    """Weights of experts by the names of their coefficients."""
    return {str(CoefficientName("weight", name)): value for name, value in weights.items()}


def names_of(anchors: Sequence[str], centres: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The start points that a study evaluates or searches around."""
    return list(dict.fromkeys([*(name for name in anchors if name != DEFAULT_ANCHORS), *_around(centres)]))


def _around(centres: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [str(one["around"]) for one in centres.values()]


def check_start_points(found: Findings, space: MergeSpace, centres: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What keeps the start points of a study file from being found, a line each."""
    search, kind = found.file.search, found.file.backend.type
    if DEFAULT_ANCHORS not in search.anchors:
        yield (
            f"search.anchors is [{', '.join(search.anchors)}]; {DEFAULT_ANCHORS} must be among them, since objectives "
            "are normalised by those anchors"
        )
    twice = {name for name in search.anchors if search.anchors.count(name) > 1}
    yield from (f"search.anchors names {name} twice" for name in sorted(twice))
    named = names_of(search.anchors, centres)
    for name in named:
        where = "search.anchors" if name in search.anchors else "merge.space"
        if kind != "local":
            reads = START_POINTS[name].reads
            yield f"{where}: {name} reads {reads}, which only backend: {{type: local}} has here; remove it"
        refusal = refuses_weights(space)
        if refusal is not None:
            yield f"{where}: {name} cannot be a point of this space: {refusal}"
        if name == ALIGNED:
            yield from _check_prompts(found, space)
        elif name == "posterior-weighted" and not any(_has_prompts(task) for task in found.file.tasks.values()):
            yield f"{where}: {name} needs a task whose items are texts to continue"
    if "aligned" in search.model_fields_set and ALIGNED not in named:
        yield "search.aligned is used by nothing; add aligned to search.anchors"


def _has_prompts(task: Mapping[str, Any]) -> bool:
    return task.get("type") in _OF_TEXTS


def _check_prompts(found: Findings, space: MergeSpace) -> Iterator[str]:
    files, tasks = found.file.search.aligned.prompts, found.file.tasks
    for name in files:
        if name not in space.models:
            yield f"search.aligned.prompts: {name!r} is no expert {did_you_mean(name, space.models)}"
    for name in space.models:
        if name in files:
            problems = read_items(found.root / files[name], files[name], _KEYS).problems
            yield from (f"search.aligned.prompts.{name}: {problem}" for problem in problems)
        elif not _has_prompts(tasks.get(name, {})):
            yield (
                f"search: aligned has no prompts of expert {name!r}: no task of texts is called so; give "
                f"search.aligned.prompts: {{{name}: FILE}}"
            )


def with_start_points(definition: StudyDefinition, evaluator: Evaluator | None) -> StudyDefinition:
    """A new study's definition with the weights of its start points, and a space around them where it is to be.

    Models are asked through the evaluator's backend, if there is one. Raises ``UserError``.
    """
    opened: list[LocalBackend] = []

    def open_backend() -> LocalBackend:
        if isinstance(evaluator, TaskEvaluator):
            return evaluator.backend  # type: ignore[return-value]
        opened[:] = opened or [local_backend(definition)]
        return opened[0]

    learned = {}
    for name in names_of(definition.anchors, definition.centres):
        _log.warning("start point %s: its weights are found first, once", name)
        try:
            learned[name] = dict(START_POINTS[name].weights(definition, open_backend))
        except UserError as error:
            raise UserError(f"search.anchors: {name}: {error}") from None
    return replace(definition, learned=learned, space=centred(definition.space, definition.centres, learned))


def centres_of(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Of what a file says of coefficients the rules ``{around: NAME, width: NUMBER}``."""
    return {key: rule for key, rule in parameters.items() if _is_centre(rule)}


def uncentred(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with a range of the right width for each rule ``{around: NAME, width: NUMBER}``, as long as its
    centre is not known. Raises ``UserError`` for a rule that is none."""
    made = dict(parameters)
    for key, rule in centres_of(parameters).items():
        where, width = f"space: {key}", rule.get("width")
        if parameter_of(str(key)) != "weight":
            raise UserError(f"{where}: start points say weights only; write a range")
        if rule["around"] not in START_POINTS:
            hint = did_you_mean(str(rule["around"]), START_POINTS)
            raise UserError(f"{where}: there is no start point {rule['around']!r} {hint}")
        if set(rule) != {"around", "width"} or isinstance(width, bool) or not isinstance(width, int | float):
            raise UserError(f"{where} is {dict(rule)!r}; it must be written as {{around: NAME, width: NUMBER}}")
        if not 0 < width < 1e300:
            raise UserError(f"{where}: the width is {width!r}; it must be above 0")
        made[key] = [0.5 - width / 2, 0.5 + width / 2]
    return made


def _is_centre(rule: Any) -> bool:
    return isinstance(rule, Mapping) and "around" in rule


def centred(space: MergeSpace, centres: Mapping[str, Mapping[str, Any]], learned: Mapping[str, Weights]) -> MergeSpace:
    """The space with the ranges that its centres say, as far as methods take them."""
    if not centres:
        return space
    content = space.to_json()
    rules = {key: rule for key, rule in content["parameters"].items() if key not in centres}
    lowest, highest = _bounds(space)
    for name in space.searched:
        key = space.declared_by(name) if parameter_of(name) == "weight" else None
        if key is not None and key in centres:
            weights, half = learned[centres[key]["around"]], centres[key]["width"] / 2
            expert = CoefficientName.parse(name, space.models, space.grouping.split).expert
            centre = weights[name if name in weights else str(CoefficientName("weight", expert))]
            rules[name] = [max(lowest, centre - half), min(highest, centre + half)]
    return MergeSpace.from_json({**content, "parameters": rules, "ranges": None})


def _bounds(space: MergeSpace) -> tuple[float, float]:
    """What all methods of the space take as a weight."""
    taken = [one for method in space.methods if (one := METHODS[method.name].parameter("weight")) is not None]
    return max(one.low for one in taken), min(one.high for one in taken)
