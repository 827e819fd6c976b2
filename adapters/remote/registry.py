"""Backends over HTTP by the ``type`` of their section, and what they can be asked beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from mergefront.adapters.backend import Backend
from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.remote.http.cache import ResponseCache
from mergefront.adapters.remote.settings import (
    EnsembleSection,
    LlamaServerSection,
    MergeServiceSection,
    OpenAISection,
    ServerSection,
    VllmSection,
)
from mergefront.adapters.tasks.registry import Task
from mergefront.optimizer.errors import MergefrontError, UserError
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import Evaluator


class ServerBackend(Backend[LanguageModel], Protocol):
    """A backend over HTTP; it has to be closed."""

    def close(self) -> None: ...


def _llama_server(
    settings: LlamaServerSection, space: MergeSpace, root: Path, cache: ResponseCache | None
) -> ServerBackend:
    from mergefront.adapters.remote.llama_server.backend import LlamaServerBackend

    return LlamaServerBackend(settings, space.models, cache, seed=space.seed)


def _vllm(settings: VllmSection, space: MergeSpace, root: Path, cache: ResponseCache | None) -> ServerBackend:
    from mergefront.adapters.remote.vllm.backend import VllmBackend

    loras = {name: root / path for name, path in space.models.items()}
    return VllmBackend(settings, loras, root, cache, seed=space.seed)


def _openai(settings: OpenAISection, space: MergeSpace, root: Path, cache: ResponseCache | None) -> ServerBackend:
    from mergefront.adapters.remote.openai.backend import OpenAIBackend

    return OpenAIBackend(settings, space.models, space.base_model, cache, seed=space.seed)


def _ensemble(settings: EnsembleSection, space: MergeSpace, root: Path, cache: ResponseCache | None) -> ServerBackend:
    from mergefront.adapters.remote.ensemble.backend import EnsembleBackend

    return EnsembleBackend(settings, space.models, cache, seed=space.seed)


def _merge_service(
    settings: MergeServiceSection, space: MergeSpace, root: Path, cache: ResponseCache | None
) -> ServerBackend:
    from mergefront.adapters.remote.merge_service import MergeServiceBackend

    if settings.protocol == "evo-merging":
        raise UserError("the Evo-Merging service answers with a loss only; drop the tasks and name the objective loss")
    return MergeServiceBackend(settings, space.models, cache, seed=space.seed)


BACKENDS: Mapping[str, Callable[..., ServerBackend]] = {
    "llama_server": _llama_server,
    "vllm": _vllm,
    "openai": _openai,
    "ensemble": _ensemble,
    "merge_service": _merge_service,
}
"""Makers by type; each gets (settings, space, root, cache)."""


def read_settings(content: Mapping[str, Any]) -> ServerSection:
    """A backend section from a mapping (``type`` says which)."""
    adapter: TypeAdapter[ServerSection] = TypeAdapter(ServerSection)
    return adapter.validate_python(dict(content))


def make_backend(
    settings: ServerSection, space: MergeSpace, root: Path, cache: ResponseCache | None = None
) -> ServerBackend:
    """Connect to the server and return its backend; close it when done.

    Relative paths start from ``root``; ``cache`` keeps responses (``storage.responses.DatabaseResponses``).
    Raises ``UserError`` when the server cannot be used as the settings say.
    """
    return BACKENDS[settings.type](settings, space, root, cache)


def answers_with_a_loss(settings: ServerSection) -> bool:
    """Whether the server is no language model but an evaluator of its own (then a study has no tasks)."""
    return isinstance(settings, MergeServiceSection) and settings.protocol == "evo-merging"


@contextmanager
def make_evaluator(
    settings: ServerSection,
    tasks: Sequence[Task],
    space: MergeSpace,
    root: Path,
    cache: ResponseCache | None = None,
) -> Iterator[Evaluator]:
    """The evaluator of a study on a server, while the block lasts: its tasks on the backend, or the service's loss."""
    if isinstance(settings, MergeServiceSection) and settings.protocol == "evo-merging":
        from mergefront.adapters.remote.merge_service import EvoMergingEvaluator

        with closing(EvoMergingEvaluator(settings, list(space.models), cache, seed=space.seed)) as evaluator:
            yield evaluator
        return
    with closing(make_backend(settings, space, root, cache)) as backend:
        yield TaskEvaluator(backend, tasks)


def backend_problems(
    settings: ServerSection, space: MergeSpace, root: Path, verbs: Sequence[Verb], cache: ResponseCache | None = None
) -> list[str]:
    """What is wrong with a backend, found by connecting to it: addresses, keys, LoRAs, honesty, abilities.

    ``verbs`` are what the study's tasks ask. At most a few short requests per model.
    """
    if answers_with_a_loss(settings):
        try:
            with make_evaluator(settings, (), space, root, cache):
                return []
        except MergefrontError as error:
            return str(error).split("\n")
    try:
        backend = make_backend(settings, space, root, cache)
    except MergefrontError as error:
        return str(error).split("\n")
    try:
        ask: Callable[[Sequence[Verb]], list[str]] | None = getattr(backend, "problems", None)
        return [] if ask is None else ask(verbs)
    finally:
        backend.close()
