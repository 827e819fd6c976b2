"""Which faults are tried again, and after how long. Pure functions; the waiting is done by the client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from mergefront.optimizer.seeding import derive_seed

TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529, 530, 599})
"""Answers that a later attempt may mend; every other error status is final."""

REFUSED_CONTENT_STATUS = frozenset({200, 400, 403, 413, 422, 451})
"""Statuses with which servers refuse what one request says; 200 stands for an error inside an answer."""


@dataclass(frozen=True)
class RetryPolicy:
    """``attempts`` in all; waits grow from ``first_wait`` by factors of two up to ``longest_wait`` (seconds)."""

    attempts: int = 10
    first_wait: float = 0.25
    longest_wait: float = 30.0

    def wait(self, attempt: int, seed: int, key: str) -> float:
        """Seconds before attempt ``attempt + 1`` (the first is number 1).

        Between half of the exponential bound and all of it; the jitter is drawn from (seed, request,
        attempt), so that clients spread and a repeated run waits alike.
        """
        bound = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        jitter = derive_seed(seed, "retry", key, attempt) / 2**63
        return bound * (0.5 + 0.5 * jitter)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for (a number or a date); None when it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except (ValueError, TypeError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
