"""Responses by exact request, so that nothing is paid for twice.

``ResponseCache`` is implemented by ``mergefront.storage.responses`` in the study's database and by
``MemoryCache`` for uses without one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Spent = tuple[int, int, int]
"""Requests, input tokens, output tokens."""


class ResponseCache(Protocol):
    """Keeps responses durably: a response is found again once ``keep`` has returned, even after a kill.

    Thread-safe. Plain values cross this seam, so that the two sides need not know each other. ``spent``
    is a triple (requests, input tokens, output tokens).
    """

    def find(self, key: str) -> str | None:
        """The body of the response to an exact request, or None."""

    def keep(self, key: str, server: str, body: str, spent: Spent) -> None:
        """Store one response and its cost; ``server`` says who answered. The first one of a key stays."""

    def spent(self, server: str) -> Spent:
        """What all stored responses of one server cost."""


class MemoryCache:
    """A cache for as long as the process lives."""

    def __init__(self) -> None:
        self._responses: dict[str, tuple[str, str, Spent]] = {}

    def find(self, key: str) -> str | None:
        found = self._responses.get(key)
        return None if found is None else found[1]

    def keep(self, key: str, server: str, body: str, spent: Spent) -> None:
        self._responses.setdefault(key, (server, body, spent))

    def spent(self, server: str) -> Spent:
        costs = [cost for owner, _, cost in list(self._responses.values()) if owner == server]
        return sum(c[0] for c in costs), sum(c[1] for c in costs), sum(c[2] for c in costs)


def request_key(
    server: str, method: str, path: str, body: Mapping[str, Any] | Sequence[Any] | None, state: str = ""
) -> str:
    """64 hexadecimal characters, equal exactly for equal requests to the same server.

    ``server`` says whose answer it is (its model, see the backends), ``state`` in which state it was;
    headers, the API key among them, are no part of it.
    """
    canonical = json.dumps([server, method, path, body, state], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
