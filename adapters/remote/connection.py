"""The client of a backend, from its section of the study file."""

from __future__ import annotations

from mergefront.adapters.remote.http.breaker import BreakerPolicy
from mergefront.adapters.remote.http.budget import Budget, Price
from mergefront.adapters.remote.http.cache import ResponseCache
from mergefront.adapters.remote.http.client import ClientPolicy, HttpClient
from mergefront.adapters.remote.http.endpoint import ApiKey
from mergefront.adapters.remote.http.retry import RetryPolicy
from mergefront.adapters.remote.settings import ConnectionSection


def connect(
    settings: ConnectionSection, cache: ResponseCache | None, *, server: str | None = None, seed: int = 0
) -> HttpClient:
    """A client; raises ``UserError`` when the address or the key's variable is wrong."""
    policy = ClientPolicy(
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        retry=RetryPolicy(settings.attempts, longest_wait=settings.longest_wait),
        breaker=BreakerPolicy(give_up=settings.give_up),
        budget=Budget(settings.budget.requests, settings.budget.tokens, settings.budget.money),
        price=Price(settings.price.input, settings.price.output, settings.price.request),
    )
    key = None if settings.api_key_env is None else ApiKey.from_environment(settings.api_key_env)
    return HttpClient(
        settings.url,
        policy,
        api_key=key,
        cache=cache,
        server=server,
        seed=seed,
        allow_plain_http=settings.allow_plain_http,
    )
