"""How much of its quota a client has left."""

from __future__ import annotations

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
    """Books what clients use; days are UTC's."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state

    def take(self, client: Client, items: int) -> str:
        """Book one message of ``items`` before it is worked on; returns the period: a day, or "ever".

        Raises ``QuotaSpentError`` when it does not fit. Tokens are known afterwards, so that messages under
        way together may exceed that quota.
        """
        now = datetime.now(UTC)
        period = f"{now:%Y-%m-%d}" if client.quota.per == "day" else "ever"
        used = self._state.used(client.name, period)
        quota = client.quota
        wanted = (
            ("requests", quota.requests, used.requests + 1),
            ("items", quota.items, used.items + items),
            ("tokens", quota.tokens, used.tokens + 1),
        )
        for name, limit, after in wanted:
            if limit is not None and after > limit:
                wait = None if period == "ever" else 86400 - (now.hour * 3600 + now.minute * 60 + now.second)
                when = "" if wait is None else "; it begins anew at midnight UTC"
                raise QuotaSpentError(f"the quota of {limit} {name} is used up{when}", wait)
        self._state.add_used(client.name, period, Used(1, items))
        return period

    def add(self, client: Client, period: str, used: Used) -> None:
        """Book tokens, or with numbers below 0 give back what ``take`` booked for a message not worked on."""
        self._state.add_used(client.name, period, used)
