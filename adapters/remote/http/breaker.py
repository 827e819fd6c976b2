"""A circuit breaker: a server that keeps failing is left alone for a while, then probed, then given up.

    closed --(threshold faults in a row)--> open --(pause over)--> one probe --> closed, or open for longer

While it is open, requests wait instead of being sent. When no request has been answered for ``give_up``
seconds of open time the search stops, with everything that finished kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mergefront.optimizer.errors import SearchStoppedError


class ServerUnavailableError(SearchStoppedError):
    """The server stopped answering; the search can be resumed when it is back."""


@dataclass(frozen=True)
class BreakerPolicy:
    """``threshold`` faults in a row open the breaker for ``pause`` seconds, doubled each time up to
    ``longest_pause``; ``give_up`` seconds after it opened without any answer the search stops."""

    threshold: int = 20
    pause: float = 1.0
    longest_pause: float = 60.0
    give_up: float = 300.0


class CircuitBreaker:
    """One server's breaker. All methods belong to one event loop; ``clock`` counts seconds."""

    def __init__(self, policy: BreakerPolicy, server: str, clock: Callable[[], float]) -> None:
        self.policy = policy
        self._server = server
        self._clock = clock
        self._faults = 0
        self._pause = policy.pause
        self._opened_at: float | None = None
        self._closed_until = 0.0
        self._probe = asyncio.Lock()
        self._last_fault = ""

    @property
    def is_open(self) -> bool:
        return self._opened_at is not None

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Wait until a request may be sent: at once while closed, one at a time while open.

        Raises ``ServerUnavailableError`` when the server is given up.
        """
        if not self.is_open:
            yield
            return
        async with self._probe:
            while self.is_open:
                self._check_given_up()
                remaining = self._closed_until - self._clock()
                if remaining <= 0:
                    break
                await asyncio.sleep(remaining)
            if self.is_open:
                yield
                return
        yield

    def answered(self) -> None:
        """The server answered: the breaker closes."""
        self._faults = 0
        self._pause = self.policy.pause
        self._opened_at = None

    def failed(self, fault: str) -> None:
        """One more fault in a row (``fault`` says which)."""
        self._faults += 1
        self._last_fault = fault
        if self._faults < self.policy.threshold:
            return
        now = self._clock()
        if self._opened_at is None:
            self._opened_at = now
        elif now < self._closed_until:
            return
        self._closed_until = now + self._pause
        self._pause = min(2 * self._pause, self.policy.longest_pause)

    def _check_given_up(self) -> None:
        if self._opened_at is not None and self._clock() - self._opened_at > self.policy.give_up:
            raise ServerUnavailableError(
                f"{self._server} has not answered for {self.policy.give_up:g} seconds ({self._faults} faults in a row, "
                f"the last one: {self._last_fault}). What finished is kept; resume the study when the server is back"
            )
