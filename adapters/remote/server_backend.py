"""What every backend over HTTP is: clients that are closed with it, and recipes that are applied for a while."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import LanguageModel, Verb
from mergefront.adapters.remote.http.breaker import BreakerPolicy
from mergefront.adapters.remote.http.budget import Price
from mergefront.adapters.remote.http.cache import ResponseCache
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient
from mergefront.adapters.remote.http.endpoint import ApiKey
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.adapters.remote.identity import Recognition
from mergefront.adapters.remote.settings import ConnectionSection
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.space import MergeSpace

SectionT = TypeVar("SectionT")


def client_of(
    settings: ConnectionSection,
    cache: ResponseCache | None,
    seed: int,
    server: str | None = None,
    where: str = "backend",
) -> HttpClient:
    """A client of a server; ``where`` is its section in the study file. Raises ``UserError`` when the address or the
    key's variable is wrong."""
    policy = ClientPolicy(
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        retry=RetryPolicy(settings.attempts, longest_wait=settings.longest_wait),
        breaker=BreakerPolicy(give_up=settings.give_up),
        budget=settings.budget,
        price=settings.price,
        where=where,
    )
    return HttpClient(
        settings.url,
        policy,
        api_key=None if settings.api_key_env is None else ApiKey.from_environment(settings.api_key_env),
        cache=cache,
        server=server,
        seed=seed,
        allow_plain_http=settings.allow_plain_http,
    )


class Connected(Generic[SectionT]):
    """A server that is connected to when this is made, and closed with ``close``.

    ``places`` says where files and models lie; ``cache`` keeps responses; ``known`` is what a stored study keeps of
    the models (see ``Recognition``). Raises ``UserError`` when the server cannot be used as the settings say.
    """

    kind: str
    """The ``type`` of its section."""
    proved = ""
    """What connecting has proved of the server's answers, for a person to read."""

    def __init__(
        self,
        settings: SectionT,
        space: MergeSpace,
        places: ModelPlaces,
        cache: ResponseCache | None = None,
        known: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.settings = settings
        self.space = space
        self.recognition = Recognition(known)
        self._cache = cache
        self._clients: list[HttpClient] = []
        try:
            self._connect(places)
        except EvaluationError as error:
            self.close()
            raise UserError(f"backend {self.kind}: {error}") from None
        except BaseException:
            self.close()
            raise

    def _connect(self, places: ModelPlaces) -> None:
        """Make the clients, and find out whether the server is what it should be."""
        raise NotImplementedError

    def _client(self, settings: ConnectionSection, server: str | None = None) -> HttpClient:
        """A client that is closed with this; raises ``UserError`` when the address or the key's variable is wrong."""
        client = client_of(settings, self._cache, self.space.seed, server)
        self._clients.append(client)
        return client

    @property
    def has_prices(self) -> bool:
        return any(client.policy.price != Price() for client in self._clients)

    def paid(self) -> float:
        """What the answers to this connection's requests cost; those that were kept cost nothing."""
        return sum(client.policy.price.of(client.usage) for client in self._clients)

    def problems(self, verbs: Sequence[Verb], counts_tokens: bool) -> list[str]:
        """What the server cannot do of what tasks ask (``verbs``, and the number of tokens written), as far as
        connecting has not shown it."""
        return []

    def proof(self, verbs: Sequence[Verb]) -> str:
        """What is proved of the server's answers, after ``problems`` found none; may ask a few short requests."""
        return self.proved

    @property
    def reader(self) -> Reader:
        """How the server reads the prompts of tasks; by default as our own merge service does."""
        return Reader()

    def close(self) -> None:
        for client in self._clients:
            client.close()


class AppliedOnServer:
    """One recipe on a server; see ``AppliedMerge``. ``model`` makes and removes what the server needs for it."""

    delta_l1: float | None = None

    def __init__(self, model: AbstractContextManager[LanguageModel]) -> None:
        self._model = model
        self.seconds = 0.0

    def __enter__(self) -> LanguageModel:
        started = time.perf_counter()
        model = self._model.__enter__()
        self.seconds = time.perf_counter() - started
        return model

    def __exit__(self, *raised: Any) -> bool | None:
        return self._model.__exit__(*raised)
