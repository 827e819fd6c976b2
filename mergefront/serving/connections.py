"""Which connections a service keeps open: requests that never become whole cannot keep others from being answered.

A connection waits while it has no whole request (from its start, or from the last answer, until the end of the next
request's body) and while its client does not take the answer. Waiting is bounded by time and by number. A request
that is worked on may take as long as it takes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

_YOUNG = 0.5
"""Seconds in which a new connection is not given up: its request may have arrived and not been read yet."""


@dataclass(frozen=True)
class ConnectionLimits:
    """``head``, ``body``: seconds until a request's headers, and then its body, have arrived; ``unread``: seconds in
    which a client may take nothing of its answer. ``per_address``, ``in_all``: waiting connections; where there are
    more, the oldest of the address, or of the address that has most, are closed."""

    head: float = 10.0
    body: float = 300.0
    unread: float = 60.0
    per_address: int = 64
    in_all: int = 256


class BoundedConfig(uvicorn.Config):
    """uvicorn's settings, with connections bounded by ``limits``."""

    def __init__(self, app: Any, limits: ConnectionLimits, **settings: Any) -> None:
        super().__init__(app, http=_BoundedConnection, **settings)
        self.limits = limits
        self.waiting = _Waiting(limits)


class _Waiting:
    """The connections that wait for a whole request, the longest waiting first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._connections: dict[_BoundedConnection, float] = {}
        self._per_address: Counter[str] = Counter()
        self._closing: asyncio.TimerHandle | None = None

    def enter(self, connection: _BoundedConnection) -> None:
        self._connections[connection] = connection.loop.time()
        self._per_address[connection.address] += 1
        if self._closing is None and self._crowded(connection.address):
            self._closing = connection.loop.call_later(_YOUNG, self._close_oldest, connection.loop)

    def leave(self, connection: _BoundedConnection) -> None:
        if self._connections.pop(connection, None) is not None:
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]

    def _crowded(self, address: str) -> bool:
        return self._per_address[address] > self._limits.per_address or len(self._connections) > self._limits.in_all

    def _close_oldest(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection, since in list(self._connections.items()):
            if now - since < _YOUNG:
                break
            mine = self._per_address[connection.address]
            too_many = len(self._connections) > self._limits.in_all and mine == max(self._per_address.values())
            if too_many or mine > self._limits.per_address:
                connection.give_up()
        still = any(self._crowded(address) for address in self._per_address)
        self._closing = loop.call_later(_YOUNG, self._close_oldest, loop) if still else None


class _BoundedConnection(H11Protocol):
    """One connection: given up when a phase of it lasts too long. A request that is worked on is in no such phase."""

    config: BoundedConfig

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._phase = ""
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Writing pauses as soon as the client takes less than it is sent, and resumes when it has taken everything.
        transport.set_write_buffer_limits(high=0)
        self._follow()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._follow()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("lost", None)
        super().connection_lost(exc)

    def give_up(self) -> None:
        """Close at once, whatever was not sent."""
        self._enter("lost", None)
        self.transport.abort()

    def _follow(self) -> None:
        limits = self.config.limits
        if self.flow.write_paused:
            self._enter("unread", limits.unread)
        elif self.cycle is None or self.cycle.response_complete:
            self._enter("head", limits.head)
        elif self.cycle.more_body:
            self._enter("body", limits.body)
        else:
            self._enter("answer", None)

    def _enter(self, phase: str, seconds: float | None) -> None:
        """Begin ``phase``, which may last ``seconds``; nothing where it has begun, or the connection is lost."""
        if self._phase in (phase, "lost"):
            return
        self._phase = phase
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self.config.waiting.leave(self)
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._late, seconds, self._unsent())
            self.config.waiting.enter(self)

    def _late(self, seconds: float, unsent: int) -> None:
        """Give the connection up, unless its client has taken a part of the answer meanwhile."""
        if self._unsent() < unsent:
            self._deadline = self.loop.call_later(seconds, self._late, seconds, self._unsent())
        else:
            self.give_up()

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()
