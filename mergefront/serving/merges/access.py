"""Who asks, and how much of its quota is left."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from mergefront.optimizer.errors import MergefrontError, UserError
from mergefront.serving.merges.settings import ClientSection, PoolFile, QuotaSection
from mergefront.serving.merges.state import ServiceState, Used

ANYBODY = "local"
"""Who asks where no clients are declared: everybody on this machine is one client."""
_SHORTEST_TOKEN = 16


class QuotaSpentError(MergefrontError):
    """A client has used what it may use. ``wait`` is seconds until there is more, None for never."""

    def __init__(self, message: str, wait: int | None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Client:
    """Somebody who may ask; the token itself is not kept, only its hash."""

    name: str
    token_hash: bytes | None
    quota: QuotaSection


def declared_clients(file: PoolFile, root: Path, environment: Mapping[str, str] = os.environ) -> tuple[Client, ...]:
    """The pool file's clients with their tokens; without any, everybody on this machine.

    Raises ``UserError`` for a token that is missing, too short or given to two clients, and for a service that
    other machines could reach without a token.
    """
    if not file.clients:
        if not file.is_loopback:
            raise UserError(
                f"host {file.host}: other machines can reach it, so it needs clients with tokens; declare them under "
                "clients, or listen on 127.0.0.1"
            )
        return (Client(ANYBODY, None, QuotaSection()),)
    clients: list[Client] = []
    for name, section in file.clients.items():
        hashed = sha256(_token(name, section, root, environment).encode()).digest()
        twin = next((client.name for client in clients if client.token_hash == hashed), None)
        if twin is not None:
            raise UserError(f"clients.{name}: the same token as {twin}'s; give each client its own")
        clients.append(Client(name, hashed, section.quota))
    return tuple(clients)


def _token(name: str, section: ClientSection, root: Path, environment: Mapping[str, str]) -> str:
    if section.token_env is not None:
        source = f"the environment variable {section.token_env}"
        token = environment.get(section.token_env, "").strip()
    else:
        path = root / str(section.token_file)
        source = str(path)
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"clients.{name}.token_file {path}: cannot be read: {type(error).__name__}") from None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"clients.{name}: {source} holds no usable token; a token is {_SHORTEST_TOKEN} or more printable "
            "characters without spaces (python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one)"
        )
    return token


def who_asks(clients: tuple[Client, ...], authorization: str | None) -> Client | None:
    """The client whose bearer token this header has, None for nobody. Takes as long for every wrong token."""
    if clients[0].token_hash is None:
        return clients[0]
    scheme, _, token = (authorization or "").partition(" ")
    given = sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
    found = None
    for client in clients:
        if hmac.compare_digest(client.token_hash or b"", given):
            found = client
    return found if scheme.lower() == "bearer" else None


class Quotas:
    """Books what clients use. ``now`` tells the time (UTC)."""

    def __init__(self, state: ServiceState, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._state = state
        self._now = now

    def period(self, client: Client) -> str:
        """The period that the client's quota is counted in: a day, or "ever"."""
        return f"{self._now():%Y-%m-%d}" if client.quota.per == "day" else "ever"

    def take(self, client: Client, items: int) -> str:
        """Book one message of ``items`` before it is worked on; returns the period.

        Raises ``QuotaSpentError`` when it does not fit. Tokens are known afterwards, so that messages under
        way together may exceed that quota.
        """
        period = self.period(client)
        used = self._state.used(client.name, period)
        quota = client.quota
        wanted = (
            ("requests", quota.requests, used.requests + 1),
            ("items", quota.items, used.items + items),
            ("tokens", quota.tokens, used.tokens + 1),
        )
        for name, limit, after in wanted:
            if limit is not None and after > limit:
                wait = None if period == "ever" else self._until_midnight()
                when = "" if wait is None else "; it begins anew at midnight UTC"
                raise QuotaSpentError(f"the quota of {limit} {name} is used up{when}", wait)
        self._state.add_used(client.name, period, Used(1, items))
        return period

    def add_tokens(self, client: Client, period: str, tokens: int) -> None:
        """Book what an answer cost."""
        self._state.add_used(client.name, period, Used(tokens=tokens))

    def give_back(self, client: Client, period: str, items: int) -> None:
        """Undo ``take`` for a message that the service could not work on."""
        self._state.add_used(client.name, period, Used(-1, -items))

    def _until_midnight(self) -> int:
        now = self._now()
        return 86400 - (now.hour * 3600 + now.minute * 60 + now.second)
