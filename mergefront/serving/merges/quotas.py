"""How much of its quota a client has left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from mergefront.optimizer.errors import MergefrontError
from mergefront.serving.merges.pool_settings import QuotaSection
from mergefront.serving.merges.state import ServiceState, Used


class QuotaSpentError(MergefrontError):
    """A client has used what it may use. ``wait`` is seconds until there is more, None for never."""

    def __init__(self, message: str, wait: int | None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Client:
    name: str
    quota: QuotaSection


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
        self._state.add_used(client.name, period, Used(tokens=tokens))

    def give_back(self, client: Client, period: str, items: int) -> None:
        """Undo ``take`` for a message that the service could not work on."""
        self._state.add_used(client.name, period, Used(-1, -items))

    def _until_midnight(self) -> int:
        now = self._now()
        return 86400 - (now.hour * 3600 + now.minute * 60 + now.second)
