"""The ``merge_service`` backend: a provider holds the weights, the user sends control vectors.

Two protocols. Our own ``mergefront serve`` takes whole recipes and answers requests of language models; the
released Evo-Merging service takes two vectors (how much of each LoRA to keep, with which weight) and answers
with one loss over a data set of its own.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Chat, Generation, GenerationRequest, LogLikelihood, ScoringRequest, Verb
from mergefront.adapters.remote.drawing import drawing
from mergefront.adapters.remote.http.client import HttpClient, Reply, all_of
from mergefront.adapters.remote.http.json_answers import MalformedAnswerError, field, fields, logprob
from mergefront.adapters.remote.identity import QUESTIONS, STRAYED, furthest
from mergefront.adapters.remote.server_backend import AppliedOnServer, Connected
from mergefront.adapters.remote.settings import MergeServiceSection
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.optimizer.errors import EvaluationError, UserError, did_you_mean
from mergefront.optimizer.recipes.anchors import anchors
from mergefront.optimizer.recipes.grouping import CoefficientName
from mergefront.optimizer.recipes.methods import METHODS
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest

LOSS = "loss"
"""The one objective of the released Evo-Merging service."""
_TOGETHER = 32
"""Requests in one message to our own service."""
QUERY_DEFAULTS: Mapping[str, Any] = {
    "dataset_dir": "data/Userdata",
    "template": "default",
    "cutoff_len": 2048,
    "max_samples": None,
    "batch_size": 15,
    "evaluation_batches": 20,
    "temperature": 0.95,
    "top_p": 0.7,
    "top_k": 50,
    "max_new_tokens": 1024,
    "repetition_penalty": 1.0,
}
"""The released service resets every field that a request leaves out, so that all are always sent."""


class MergeServiceBackend(Connected[MergeServiceSection]):
    """Our own merge service; the pool must have the recipe's models, by their names."""

    kind = "merge_service"

    def _connect(self, places: ModelPlaces) -> None:
        pool, models = self.settings.pool, self.space.models
        self.client = self._client(self.settings, f"merge_service {self.settings.url} {pool}")
        self.client.check_counted()

        def read(answer: Any) -> Reply[tuple[str, list[str], str]]:
            held = fields(answer, "models", kind=str)
            return Reply((field(answer, "session_id", kind=str), held, field(answer, "pool_digest", kind=str)))

        opened = self.client.ask("POST", "/v1/sessions", {"pool": pool}, read, cached=False)
        self._session, held, digest = self.client.run(opened)
        missing = [name for name in models if name not in held]
        if missing:
            raise UserError(f"the pool {pool!r} has no model {missing[0]!r} {did_you_mean(missing[0], held)}")
        # Answers belong to the pool's content, not to the session or the address.
        content = f"merge_service {digest}"
        if self.recognition.identify("", content, self.client.cache, list).server != content:
            raise UserError(
                f"the pool {pool!r} has changed since the study was begun, so new scores could not be compared with "
                "the old; begin a study of another name"
            )
        self.client.identify(content)

    @property
    def reader(self) -> Reader:
        def refusal(chat: Chat) -> str:
            return "the merge service has a template of its own; leave template out of chat" if chat.template else ""

        return Reader(refuses_chat=refusal)

    def proof(self, verbs: Sequence[Verb]) -> str:
        """Asks for base, each expert alone, and the first two again; raises ``UserError`` where an expert is answered
        as the base is, or a merge otherwise than before. Texts prove nothing, since merges may write the same."""
        if "loglikelihood" not in verbs:
            return ""
        recipes = [one.recipe for one in anchors(self.space)[: 1 + len(self.space.models)]]
        asked = [ScoringRequest(question, " the") for question in QUESTIONS]

        def answers(recipe: Recipe) -> list[float]:
            model = MergeServiceModel(self.client, self._session, recipe, cached=False)
            return [answer.logprob for answer in model.loglikelihood(asked)]

        base, *alone = (answers(recipe) for recipe in recipes)
        for name, found in zip(self.space.models, alone, strict=True):
            if found == base:
                raise UserError(
                    f"canary: the service answers as the base model when asked for {name!r} alone: it takes one merge "
                    "for another, or this expert is the base"
                )
        least = min(furthest(base, found) for found in alone)
        drift = max(furthest(base, answers(recipes[0])), furthest(alone[0], answers(recipes[1])))
        if drift > STRAYED * least:
            raise UserError(
                f"canary: the service answers a merge {drift:.2g} nats otherwise than before, where an expert changes "
                f"{least:.2g}: it takes one merge for another"
            )
        return (
            f"canary: each expert alone changes the answers (by {least:.2g} nats or more). Merges are answered as "
            f"before, with requests for others in between (within {drift:.1g} nats)"
        )

    def apply(self, recipe: Recipe) -> AppliedOnServer:
        """See ``Backend``; the service refuses recipes that it cannot make."""
        return AppliedOnServer(nullcontext(MergeServiceModel(self.client, self._session, recipe)))


class MergeServiceModel:
    """A ``LanguageModel``: one recipe, merged by the service whenever it is asked, or once if ``cached``."""

    def __init__(self, client: HttpClient, session: str, recipe: Recipe, *, cached: bool = True) -> None:
        self._client = client
        self._session = session
        self._cached = cached
        # References are paths on this machine, which are no business of the provider's.
        content = {**recipe.to_json(), "models": {name: name for name in recipe.models}, "base_model": None}
        self._recipe = content

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        def read_one(entry: Any) -> LogLikelihood:
            return LogLikelihood(
                logprob(entry, "logprob"),
                field(entry, "tokens", kind=int),
                field(entry, "is_greedy", kind=bool),
                entry.get("shortened") is True,
            )

        asked = [{"context": _sent(one.context), "continuation": one.continuation} for one in requests]
        return self._ask("loglikelihood", asked, read_one)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        def read_one(entry: Any) -> Generation:
            finish: Literal["stop", "length"] = "length" if field(entry, "finish", kind=str) == "length" else "stop"
            return Generation(
                field(entry, "text", kind=str),
                field(entry, "tokens", kind=int),
                finish,
                shortened=entry.get("shortened") is True,
                is_thought=entry.get("is_thought") is True,
            )

        asked = [
            {
                "prompt": _sent(one.prompt),
                "max_new_tokens": one.max_new_tokens,
                "stop": list(one.stop),
                **drawing(one),
                **({} if one.thinking is None else {"thinking": asdict(one.thinking)}),
            }
            for one in requests
        ]
        return self._ask("generate", asked, read_one)

    def _ask(self, verb: str, asked: list[dict[str, Any]], read_one: Any) -> list[Any]:
        async def part(requests: list[dict[str, Any]]) -> list[Any]:
            def read(answer: Any) -> Reply[list[Any]]:
                entries = field(answer, "answers", kind=list)
                if len(entries) != len(requests):
                    raise MalformedAnswerError(f"has {len(entries)} answers to {len(requests)} requests")
                return Reply([read_one(entry) for entry in entries])

            # A session comes and goes; what decides the answer is in the body.
            path = f"/v1/sessions/{self._session}/{verb}"
            body = {"recipe": self._recipe, "requests": requests}
            return await self._client.ask("POST", path, body, read, cached=self._cached, lasting_path=f"/{verb}")

        parts = [asked[start : start + _TOGETHER] for start in range(0, len(asked), _TOGETHER)]
        return [entry for answers in self._client.run(all_of(part(one) for one in parts)) for entry in answers]


def _sent(prompt: str | Chat) -> str | dict[str, Any]:
    """A prompt as the service takes it; it writes conversations by its own template."""
    if isinstance(prompt, str):
        return prompt
    sent = {**asdict(prompt), "options": json.loads(prompt.options)}
    del sent["template"]
    return sent


class EvoMergingEvaluator(Connected[MergeServiceSection]):
    """The released Evo-Merging service as an ``Evaluator`` of the objective ``loss`` (minimise it).

    A recipe's ``density`` is the service's alpha (how much of each LoRA's A to keep, 1 where the method has
    none), its ``weight`` (times ``lambda``) is beta. The service multiplies (sum beta B)(sum beta A): its losses
    have cross terms and do not carry over to servers that add LoRAs. Models are in the preset's order. Its batches
    are drawn anew in each call, so that the loss is noisy unless ``evaluation_batches`` cover the data set.
    """

    kind = "merge_service"
    proved = "the losses are the service's own: whether they belong to the vectors sent cannot be proved"

    def _connect(self, places: ModelPlaces) -> None:
        settings, preset = self.settings, self.settings.pool
        if not settings.query or "dataset" not in settings.query:
            raise UserError("backend.query: the service needs at least {dataset: NAME}")
        unknown = [key for key in settings.query if key != "dataset" and key not in QUERY_DEFAULTS]
        if unknown:
            raise UserError(f"backend.query: unknown key {unknown[0]!r} {did_you_mean(unknown[0], QUERY_DEFAULTS)}")
        self._models = list(self.space.models)
        query = {**QUERY_DEFAULTS, **settings.query}
        # It shares one model among its threads; and its status 500 means a wrong call as often as a fault.
        careful = settings.model_copy(update={"concurrency": 1, "attempts": min(settings.attempts, 3)})
        self.client = self._client(careful, f"evo-merging {settings.url} {preset} {sorted(query.items())}")
        self.client.check_counted()
        body = {"preset_id": preset, "model_name_or_path": None, "query_plus": query}

        def read(answer: Any) -> Reply[tuple[str, int]]:
            return Reply((field(answer, "session_id", kind=str), field(answer, "adapter_count", kind=int)))

        opened = self.client.ask("POST", "/v1/sessions", body, read, cached=False)
        self._session, number = self.client.run(opened)
        if number != len(self._models):
            raise UserError(
                f"preset {preset!r} has {number} LoRAs, but the study has {len(self._models)} models; list them all, "
                "in the preset's order"
            )

    def evaluate(self, recipe: Recipe, request: EvaluationRequest) -> Evaluation:
        """One loss; raises ``UserError`` for other objectives and for the report split."""
        if tuple(request.objectives) != (LOSS,) or request.split != "search":
            raise UserError(
                f"the Evo-Merging service measures the objective {LOSS!r} on its own data set, nothing else"
            )
        alpha, beta = control_vectors(recipe, self._models)
        started = time.perf_counter()

        def read(answer: Any) -> Reply[float]:
            value = field(answer, "loss")
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                raise EvaluationError("the service's loss is no number", kind="not finite")
            return Reply(float(field(answer, "loss", kind=(int, float))))

        # The tag names a folder on the server: a digest is safe and never the same for two candidates.
        body = {"alpha": alpha, "beta": beta, "tag": recipe.digest}
        asked = self.client.ask("POST", f"/v1/sessions/{self._session}/evaluate", body, read, cached=False)
        return Evaluation({LOSS: self.client.run(asked)}, seconds={"total": time.perf_counter() - started})


def control_vectors(recipe: Recipe, models: Sequence[str]) -> tuple[list[float], list[float]]:
    """(alpha, beta) of a recipe, in the order of ``models``; raises ``UserError`` for finer coefficients."""
    for name in recipe.params:
        parsed = CoefficientName.parse(name, recipe.models, recipe.grouping.split)
        if parsed.position is not None or parsed.module is not None:
            raise UserError(f"{name}: the service takes one number for a whole LoRA; use granularity: global")
    method = METHODS[recipe.method]
    factor = 1.0 if method.parameter("lambda") is None else float(recipe.coefficient("lambda", None, ""))
    kept = method.parameter("density") is not None
    alpha = [float(recipe.coefficient("density", name, "")) if kept else 1.0 for name in models]
    beta = [factor * float(recipe.coefficient("weight", name, "")) for name in models]
    return alpha, beta
