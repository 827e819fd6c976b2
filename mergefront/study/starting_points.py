"""Start points: merges that something else than an evaluation recommends, evaluated right after the anchors.

Their weights are found when a study begins, and stored with it. They cost budget as every merge does, and have no part
in what objectives are normalised by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mergefront.adapters.merging.vocabulary import TokenizerChoice
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.anchors import DEFAULT_ANCHORS, refuses_weights
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.study.definition import StudyDefinition


@dataclass(frozen=True)
class StartPoint:
    """How the weights of one start point are found, by the names of coefficients; raises ``UserError``.

    ``reads`` completes the sentence "it reads ..., which no server shows".
    """

    reads: str
    weights: Callable[[StudyDefinition], Mapping[str, float]]


def _inverse_norm(definition: StudyDefinition) -> Mapping[str, float]:
    """Inverse norms of task vectors, normalised (NAN, arXiv 2505.16148, known from its abstract)."""
    from mergefront.adapters.merging.importance import inverse_norm_weights, opened_alike, task_vector_norms

    space, folder = definition.space, definition.places.folder
    assert space.base_model is not None
    folders = {name: folder(path) for name, path in space.models.items()}
    tokenizer = TokenizerChoice.read(definition.tokenizer_source)
    base, experts = opened_alike(folder(space.base_model), folders, definition.modalities, tokenizer)
    return per_expert(inverse_norm_weights(task_vector_norms(base, experts)))


START_POINTS: Mapping[str, StartPoint] = {"inverse-norm": StartPoint("the experts' weights", _inverse_norm)}
"""By the names that ``search.anchors`` has for them."""


def per_expert(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights of experts by the names of their coefficients."""
    return {str(CoefficientName("weight", name)): value for name, value in weights.items()}


def check_start_points(named: Sequence[str], space: MergeSpace, backend: str) -> Iterator[str]:
    """What keeps the start points of a study file from being found, a line each."""
    if DEFAULT_ANCHORS not in named:
        yield (
            f"search.anchors is [{', '.join(named)}]; {DEFAULT_ANCHORS} must be among them, since objectives are "
            "normalised by those anchors"
        )
    for name in dict.fromkeys(named):
        if named.count(name) > 1:
            yield f"search.anchors names {name} twice"
        if name == DEFAULT_ANCHORS:
            continue
        if backend != "local":
            reads = START_POINTS[name].reads
            yield f"search.anchors: {name} reads {reads}, which only backend: {{type: local}} has here; remove it"
        refusal = refuses_weights(space)
        if refusal is not None:
            yield f"search.anchors: {name} cannot be a point of this space: {refusal}"


def with_start_points(definition: StudyDefinition) -> StudyDefinition:
    """A new study's definition with the weights of its start points. Raises ``UserError``."""
    learned = {}
    for name in definition.anchors:
        if name != DEFAULT_ANCHORS:
            try:
                learned[name] = dict(START_POINTS[name].weights(definition))
            except UserError as error:
                raise UserError(f"search.anchors: {name}: {error}") from None
    return replace(definition, learned=learned)
