"""The ``openai`` backend: models that an OpenAI-compatible endpoint serves, scored as they are.

There is nothing to merge here: a recipe must be one of the served models (weight 1, all others 0) or the
base model. The same language model stands behind ensembles and servers of merged LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from mergefront.adapters.language_model import (
    Generation,
    GenerationRequest,
    LanguageModel,
    LogLikelihood,
    ScoringRequest,
    Verb,
)
from mergefront.adapters.remote.connection import connect
from mergefront.adapters.remote.http.cache import ResponseCache
from mergefront.adapters.remote.http.client import all_of
from mergefront.adapters.remote.openai.wire import NoLogProbabilitiesError, OpenAIWire
from mergefront.adapters.remote.scales import single_model
from mergefront.adapters.remote.settings import OpenAISection
from mergefront.optimizer.errors import EvaluationError, SearchStoppedError, UserError
from mergefront.optimizer.recipes.recipe import Recipe


class OpenAIModel:
    """A ``LanguageModel``: one served model."""

    def __init__(self, wire: OpenAIWire) -> None:
        self.wire = wire

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        """By echo; raises ``EvaluationError`` where the endpoint does not give log-probabilities."""
        work = (self.wire.score(request.context, request.continuation) for request in requests)
        return self.wire.client.run(all_of(work))

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Greedy continuations; in chat mode, answers."""
        work = (self.wire.generate(one.prompt, one.max_new_tokens, one.stop) for one in requests)
        return self.wire.client.run(all_of(work))


class AppliedModel:
    """A model that needs no applying; see ``AppliedMerge``."""

    delta_l1: float | None = None
    seconds: float = 0.0

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def __enter__(self) -> LanguageModel:
        return self._model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class OpenAIBackend:
    """Served models by the recipe's names; a model's reference is its name at the endpoint."""

    def __init__(
        self,
        settings: OpenAISection,
        models: Mapping[str, str],
        base_model: str | None,
        cache: ResponseCache | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self._settings = settings
        self._models = dict(models)
        self._base_model = base_model
        self.client = connect(settings, cache, server=f"openai {settings.url}", seed=seed)

    def apply(self, recipe: Recipe) -> AppliedModel:
        """See ``Backend``; raises ``UserError`` for every recipe that is a real merge."""
        name = single_model(recipe)
        if name is None:
            raise UserError(
                "an OpenAI-compatible endpoint serves models as they are and cannot merge them; use backend: ensemble "
                "to mix their answers, or a server that holds LoRAs (llama_server, vllm, merge_service)"
            )
        served = self._models[name] if name else self._base_model
        if served is None:
            raise UserError("this recipe is the base model; name the served one in merge.base_model")
        return AppliedModel(self.model(served))

    def model(self, served: str) -> OpenAIModel:
        """A served model by its name at the endpoint."""
        return OpenAIModel(OpenAIWire(self.client, served, mode=self._settings.mode, system=self._settings.system))

    def problems(self, verbs: Sequence[Verb]) -> list[str]:
        """What the endpoint cannot do of what tasks ask; one or two short requests."""
        served = self._base_model or next(iter(self._models.values()))
        return endpoint_problems(self.model(served), verbs)

    def close(self) -> None:
        """Release the connections."""
        self.client.close()


def endpoint_problems(model: OpenAIModel, verbs: Sequence[Verb]) -> list[str]:
    """Whether an endpoint answers, and has log-probabilities if they are needed."""
    label = f"{model.wire.client.url} ({model.wire.model})"
    try:
        if "loglikelihood" in verbs:
            model.loglikelihood([ScoringRequest("The capital of France is", " Paris")])
        if "generate" in verbs:
            model.generate([GenerationRequest("The capital of France is", 1)])
    except NoLogProbabilitiesError as error:
        return [f"{label}: {error}"]
    except (EvaluationError, SearchStoppedError) as error:
        return [f"{label}: {error}"]
    return []
