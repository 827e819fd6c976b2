"""Backends over HTTP by the ``type`` of their section, and what they can be asked beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from mergefront.adapters.backend import Backend
from mergefront.adapters.evaluator import Before, TaskEvaluator, nothing
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Verb
from mergefront.adapters.remote.ensemble.backend import EnsembleBackend
from mergefront.adapters.remote.http.cache import ResponseCache
from mergefront.adapters.remote.llama_server.backend import LlamaServerBackend
from mergefront.adapters.remote.merge_service import EvoMergingEvaluator, MergeServiceBackend
from mergefront.adapters.remote.openai.backend import OpenAIBackend
from mergefront.adapters.remote.settings import MergeServiceSection, ServerSection, VllmSection
from mergefront.adapters.remote.vllm.backend import VllmBackend
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.adapters.tasks.task import Task
from mergefront.optimizer.errors import EvaluationError, MergefrontError, UserError
from mergefront.optimizer.recipes.anchors import one_of_each_method
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluator

BACKENDS: Mapping[str, type[Any]] = {
    backend.kind: backend
    for backend in (LlamaServerBackend, VllmBackend, OpenAIBackend, EnsembleBackend, MergeServiceBackend)
}


def read_settings(content: Mapping[str, Any]) -> ServerSection:
    """A backend section from a mapping (``type`` says which)."""
    adapter: TypeAdapter[ServerSection] = TypeAdapter(ServerSection)
    return adapter.validate_python(dict(content))


def make_backend(
    settings: ServerSection,
    space: MergeSpace,
    places: ModelPlaces,
    cache: ResponseCache | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> Any:
    """Connect to the server and return its backend, or its evaluator where it answers with a loss; close it when done.

    ``places`` says where files and models lie; ``cache`` keeps responses (``storage.responses.DatabaseResponses``);
    ``known`` is what a stored study keeps of the models there (nothing, if it was begun by a version that kept
    nothing).
    Raises ``UserError`` when the server cannot be used as the settings say.
    """
    connect: type[Any] = EvoMergingEvaluator if answers_with_a_loss(settings) else BACKENDS[settings.type]
    return connect(settings, space, places, cache, known)


def answers_with_a_loss(settings: ServerSection) -> bool:
    """Whether the server is no language model but an evaluator of its own (then a study has no tasks)."""
    return isinstance(settings, MergeServiceSection) and settings.protocol == "evo-merging"


def models_read_here(settings: ServerSection, space: MergeSpace) -> list[str]:
    """The references of models whose files a backend reads on this machine; the others are names at a server."""
    return list(space.models.values()) if isinstance(settings, VllmSection) else []


@contextmanager
def connected_evaluator(
    settings: ServerSection,
    tasks: Sequence[Task],
    space: MergeSpace,
    places: ModelPlaces,
    cache: ResponseCache | None = None,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    before: Before = nothing,
) -> Iterator[Evaluator]:
    """The evaluator of a study on a server, while the block lasts: its tasks on the backend, or the service's loss."""
    with closing(make_backend(settings, space, places, cache, known)) as connected:
        if isinstance(connected, EvoMergingEvaluator):
            yield connected
        else:
            yield TaskEvaluator(connected, tasks, before=before, paid=connected.paid if connected.has_prices else None)


@dataclass(frozen=True)
class BackendFindings:
    """What connecting to a backend shows: what is wrong, what is proved of its answers, and what a study keeps of the
    models there."""

    problems: list[str]
    proved: str = ""
    served: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def try_backend(
    settings: ServerSection,
    space: MergeSpace,
    places: ModelPlaces,
    verbs: Sequence[Verb],
    look: Callable[[Reader], None] = lambda _: None,
    *,
    counts_tokens: bool = False,
) -> BackendFindings:
    """Connect to a backend and see what is wrong: addresses, keys, LoRAs, honesty, abilities.

    ``verbs`` are what the study's tasks ask, ``counts_tokens`` whether it needs to know how many are written. At most
    a few short requests per model. ``look`` is handed, while the connection lasts, how a sound server reads prompts.
    """
    try:
        with closing(make_backend(settings, space, places)) as connected:
            found: list[str] = connected.problems(verbs, counts_tokens)
            if not found and not isinstance(connected, EvoMergingEvaluator):
                found = refused_recipes(connected, space)
            proved = ""
            if not found:
                look(connected.reader)
                proved = connected.proof(verbs)
            return BackendFindings(found, proved, connected.recognition.served)
    except MergefrontError as error:
        return BackendFindings(str(error).split("\n"))


def refused_recipes(backend: Backend[Any], space: MergeSpace) -> list[str]:
    """Why a backend makes no recipes of a method of the space, a sentence each; nothing is merged."""
    found: dict[str, None] = {}
    for recipe in one_of_each_method(space):
        try:
            backend.apply(recipe)
        except UserError as error:
            found[str(error)] = None
        except EvaluationError:
            pass  # these numbers alone make no model
    return list(found)
