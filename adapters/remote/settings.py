"""The ``backend`` section of a study file, for each backend over HTTP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mergefront.adapters.remote.http.breaker import BreakerPolicy
from mergefront.adapters.remote.http.budget import Budget, Price
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.adapters.remote.openai.request_fields import request_problem
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.sections import Section

MERGE_WORKER = "mergefront.adapters.remote.vllm.worker.MergeWorker"
"""What vLLM's workers are extended by, to merge."""


class BackendSection(Section):
    """A backend over HTTP, or a part of one."""


class ConnectionSection(BackendSection):
    """How a server is reached. ``api_key_env`` names the environment variable that holds its key."""

    url: str
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    allow_plain_http: bool = False
    concurrency: int = Field(default=4, ge=1, le=1024)
    timeout: float = Field(default=120.0, gt=0, le=86400)
    attempts: int = Field(default=RetryPolicy.attempts, ge=1, le=100)
    longest_wait: float = Field(default=RetryPolicy.longest_wait, gt=0, le=3600)
    give_up: float = Field(default=BreakerPolicy.give_up, gt=0, le=86400)
    budget: Budget = Budget()
    price: Price = Price()


class LlamaServerSection(ConnectionSection):
    """llama.cpp's server. ``loras`` maps the recipe's models to the server's LoRAs, by file name or id;
    without it a model is the LoRA whose file is called after it.

    ``scales: request`` sends every scale with every request; ``global`` sets them on the server, which then
    must serve nobody else. ``prompt_cache`` lets the server keep prompts between requests: faster, and exact
    only where the canary finds it so (``request`` scales, server started with ``--cache-ram 0``).
    """

    type: Literal["llama_server"]
    loras: dict[str, str | int] | None = None
    scales: Literal["request", "global"] = "request"
    prompt_cache: bool = False


class VllmSection(ConnectionSection):
    """A vLLM server that takes LoRAs at run time; ``url`` is its address without ``/v1``.

    Merged LoRAs are written to ``lora_folder``, which the server sees as ``server_folder`` (default: under the
    same path). ``base_model`` is the base's name at the server (default: the first that it serves), ``max_rank``
    the server's ``--max-lora-rank``.
    """

    type: Literal["vllm"]
    lora_folder: str
    server_folder: str | None = None
    base_model: str | None = None
    max_rank: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _takes_loras(cls, given: Any) -> Any:
        if isinstance(given, dict) and "lora_folder" not in given:
            raise PydanticCustomError(
                "lora_folder",
                "LoRAs at run time need lora_folder; whole merges in vLLM are {written}",
                {"written": "backend: {type: local, engine: vllm, vllm: {url: ...}}"},
            )
        return given


class VllmEngineSection(Section):
    """Which vLLM computes merges (``engine: vllm``): one that is started from the environment of ``python``, with
    ``arguments``, or the running one at ``url``."""

    python: str | None = Field(default=None, description="of the environment that vLLM is in; default: this one")
    arguments: list[str] = Field(default=[], description="of the server: ['--tensor-parallel-size', '2']")
    url: str | None = Field(default=None, description=f"of a running server with --worker-extension-cls {MERGE_WORKER}")
    weights: Literal["auto", "merge", "file", "reload"] = Field(
        default="auto",
        description="how merges come there: made by its workers (merge), or here and read by them (file) or by vLLM's "
        "own means (reload); auto: the first that it can",
    )
    folder: str | None = Field(default=None, description="where merges made here are written; default: shared memory")
    server_folder: str | None = Field(default=None, description="what that folder is called on the server's machine")
    concurrency: int = Field(default=64, ge=1, le=1024, description="requests at once")
    timeout: float = Field(default=600.0, gt=0, description="seconds for one request, or for one merge")
    start_timeout: float = Field(default=900.0, gt=0, description="seconds until a server answers")

    def at(self, root: Path) -> VllmEngineSection:
        """The same with ``folder`` found from the study's. Raises ``UserError`` where there is none."""
        if self.folder is None:
            return self
        folder = (root / self.folder).resolve()
        if not folder.is_dir():
            raise UserError(f"backend.vllm.folder {folder}: there is no such folder; the server has to read it")
        return self.model_copy(update={"folder": str(folder)})


class _EndpointSection(ConnectionSection):
    """How models are asked at an OpenAI-compatible endpoint (``url`` ends where ``/completions`` or
    ``/chat/completions`` begins).

    ``mode: chat`` sends prompts as a user's message after the optional ``system`` message. ``request`` has fields that
    are added to every request. ``tokenizer`` is the folder or file of a tokenizer.json by which tokens are counted
    where the endpoint does not report them.
    """

    mode: Literal["completions", "chat"] = "completions"
    system: str | None = None
    request: dict[str, Any] = Field(default_factory=dict)
    tokenizer: str | None = None

    @field_validator("url")
    @classmethod
    def _ends_before_the_route(cls, given: str) -> str:
        route = re.search(r"/(chat/)?completions/?$", given)
        if route is not None:
            raise PydanticCustomError("url", "it ends where {route} begins; remove that", {"route": route[0]})
        return given

    @field_validator("request")
    @classmethod
    def _only_adds(cls, given: dict[str, Any]) -> dict[str, Any]:
        problem = request_problem(given)
        if problem is not None:
            raise PydanticCustomError("request", "{problem}", {"problem": problem})
        return given


class OpenAISection(_EndpointSection):
    """Models that an endpoint serves as they are."""

    type: Literal["openai"]


class MemberSection(_EndpointSection):
    """One closed model of an ensemble; ``model`` is its name at the endpoint."""

    model: str
    mode: Literal["completions", "chat"] = "chat"


class JudgeSection(MemberSection):
    """A model that judges answers, under ``judges`` of a study file; ``max_tokens`` bounds what it says of one."""

    max_tokens: int = Field(default=1024, ge=1)


class EnsembleSection(BackendSection):
    """Closed models whose answers are mixed; ``members`` has one entry for each of the recipe's models.

    With ``route_to`` each prompt is answered by so many members, weighed by how likely each finds the prompt (their
    weights in the recipe are the prior); all must give log-probabilities of a given text.
    """

    type: Literal["ensemble"]
    members: dict[str, MemberSection] = Field(min_length=1)
    route_to: int | None = Field(
        default=None, ge=1, description="how many members answer a prompt: those that find it likeliest"
    )


class MergeServiceSection(ConnectionSection):
    """A provider's merge service. ``protocol: mergefront`` is our own ``mergefront serve``; ``evo-merging`` is
    the released Evo-Merging service, which answers with a loss (objective ``loss``) over its own data set."""

    type: Literal["merge_service"]
    pool: str
    protocol: Literal["mergefront", "evo-merging"] = "mergefront"
    query: dict[str, Any] | None = None


ServerSection = Annotated[
    LlamaServerSection | VllmSection | OpenAISection | EnsembleSection | MergeServiceSection,
    Field(discriminator="type"),
]
"""Any backend over HTTP, told apart by ``type``."""

RUNTIME_KEYS = frozenset(
    {"url", "api_key_env", "allow_plain_http", "concurrency", "timeout", "attempts", "longest_wait", "give_up"}
    | {"budget", "price", "lora_folder", "server_folder"}
)
"""Keys that say how the work is done and not what is measured: a study may be continued with others."""


def split_settings(section: BaseModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """A section as (definition, runtime): what decides the scores, and what may differ on resume."""
    content = section.model_dump(mode="json")
    return _part(content, runtime=False), _part(content, runtime=True)


def joined_settings(definition: dict[str, Any], runtime: dict[str, Any]) -> dict[str, Any]:
    """The inverse of ``split_settings``: a mapping to validate as a section."""
    content = {**definition, **{key: value for key, value in runtime.items() if key != "members"}}
    if "members" in definition:
        others = runtime.get("members", {})
        content["members"] = {name: {**one, **others.get(name, {})} for name, one in definition["members"].items()}
    return content


def _part(content: dict[str, Any], *, runtime: bool) -> dict[str, Any]:
    kept = {key: value for key, value in content.items() if key != "members" and (key in RUNTIME_KEYS) == runtime}
    if "members" in content:
        kept["members"] = {name: _part(one, runtime=runtime) for name, one in content["members"].items()}
    return kept
