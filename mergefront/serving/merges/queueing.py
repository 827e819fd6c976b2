"""One job at a time, in turns that are fair.

Start-time fair queueing (Goyal, Vin, Cheng 1996) on two levels: among clients, and among the sessions of a
client. Whoever was served least goes next, in units of the jobs' costs, so that many sessions or large
messages buy nobody a larger share; idle time earns no credit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mergefront.optimizer.errors import MergefrontError

T = TypeVar("T")
Key = TypeVar("Key")


class QueueFullError(MergefrontError):
    """Too much waits already; try again in a moment."""


class QueueClosedError(MergefrontError):
    """The service is ending; what was not begun is to be asked of its successor."""


class GoneError(MergefrontError):
    """Nobody waits for the answer any more."""


class Turns(Generic[Key]):
    """Whose turn it is. A key's tag is the cost that it has been served; the lowest tag is next."""

    def __init__(self) -> None:
        self._now = 0.0
        self._tags: dict[Key, float] = {}
        self._finished: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._tags)

    def enter(self, key: Key) -> None:
        """``key`` has something waiting."""
        if key not in self._tags:
            self._tags[key] = max(self._now, self._finished.pop(key, 0.0))

    def next(self) -> Key:
        """The key that is to be served; the first to enter among equals."""
        key = min(self._tags, key=self._tags.__getitem__)
        self._now = self._tags[key]
        return key

    def served(self, key: Key, cost: float, *, more: bool) -> None:
        """``key`` was served; ``more`` says whether it has something else waiting."""
        tag = self._tags.pop(key) + cost
        if more:
            self._tags[key] = tag
        else:
            self._finished[key] = tag
        self._finished = {one: end for one, end in self._finished.items() if end > self._now}


@dataclass
class _Job:
    work: Callable[[], Any]
    cost: float
    wanted: Callable[[], Awaitable[bool]]
    answer: asyncio.Future[Any]


class FairQueue:
    """Runs jobs one after the other in ``executor`` (a thread). All methods belong to one event loop.

    ``longest`` is how many jobs of one client may wait.
    """

    def __init__(self, run: Callable[[Callable[[], Any]], Awaitable[Any]], longest: int) -> None:
        self._run = run
        self._longest = longest
        self._clients: Turns[str] = Turns()
        self._sessions: dict[str, Turns[str]] = {}
        self._jobs: dict[tuple[str, str], deque[_Job]] = {}
        self._filled = asyncio.Event()
        self._closed = False
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        return sum(len(jobs) for jobs in self._jobs.values())

    async def ask(
        self,
        client: str,
        session: str,
        cost: float,
        work: Callable[[], T],
        wanted: Callable[[], Awaitable[bool]],
    ) -> T:
        """The result of ``work``, run when its turn comes; ``wanted`` is asked before.

        Raises ``QueueFullError``, ``QueueClosedError``, ``GoneError`` when the job was not ``wanted`` any
        more, and whatever ``work`` raises.
        """
        if self._closed:
            raise QueueClosedError("the service is ending; ask again in a moment")
        if sum(len(jobs) for (owner, _), jobs in self._jobs.items() if owner == client) >= self._longest:
            raise QueueFullError(f"{self._longest} requests are waiting already; ask again when some are answered")
        if self._worker is None:
            self._worker = asyncio.create_task(self._serve())
        job = _Job(work, cost, wanted, asyncio.get_running_loop().create_future())
        self._jobs.setdefault((client, session), deque()).append(job)
        self._sessions.setdefault(client, Turns()).enter(session)
        self._clients.enter(client)
        self._filled.set()
        answer: T = await job.answer
        return answer

    async def _serve(self) -> None:
        while True:
            while not len(self._clients):
                self._filled.clear()
                await self._filled.wait()
            job = self._take()
            if job.answer.done():
                continue
            try:
                if not await job.wanted():
                    raise GoneError("the client is gone")
                result = await self._run(job.work)
            except asyncio.CancelledError:
                job.answer.cancel()
                raise
            except Exception as error:
                if not job.answer.done():
                    job.answer.set_exception(error)
            else:
                if not job.answer.done():
                    job.answer.set_result(result)

    def _take(self) -> _Job:
        client = self._clients.next()
        sessions = self._sessions[client]
        session = sessions.next()
        jobs = self._jobs[client, session]
        job = jobs.popleft()
        if not jobs:
            del self._jobs[client, session]
        # What nobody waits for costs nobody anything.
        cost = 0.0 if job.answer.done() else job.cost
        sessions.served(session, cost, more=bool(jobs))
        self._clients.served(client, cost, more=len(sessions) > 0)
        if not len(sessions):
            del self._sessions[client]
        return job

    def close(self) -> None:
        """Refuse everything that waits and everything new; what runs may end."""
        self._closed = True
        for jobs in self._jobs.values():
            for job in jobs:
                if not job.answer.done():
                    job.answer.set_exception(QueueClosedError("the service is ending; ask again in a moment"))

    async def end(self) -> None:
        """Close, and stop waiting for jobs."""
        self.close()
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
