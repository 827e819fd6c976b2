"""The service behind the routes: sessions, quotas, and jobs that wait for the one live model."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mergefront.adapters.evaluator import out_of_memory
from mergefront.optimizer.errors import EvaluationError, MergefrontError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.serving.merges.pool_settings import PoolFile, QuotaSection
from mergefront.serving.merges.queueing import FairQueue, QueueClosedError, QueueFullError
from mergefront.serving.merges.quotas import Client, Quotas
from mergefront.serving.merges.resident_models import MergePool, Worked
from mergefront.serving.merges.state import ServiceSession, ServiceState, Used
from mergefront.serving.metrics import Metrics
from mergefront.serving.tokens import Tokens

if TYPE_CHECKING:
    from mergefront.adapters.local.model import HuggingFaceModel

T = TypeVar("T")
Gone = Callable[[], Awaitable[bool]]

_log = logging.getLogger("mergefront.serve")
_GENERATED = 8
"""A generated token takes a pass of its own; counted as this many read tokens. Chosen by hand."""


_METRICS = {
    "requests_total": ("counter", "Answered HTTP requests by route and status."),
    "items_total": ("counter", "Items answered, by verb."),
    "tokens_total": ("counter", "Tokens scored or generated, by verb."),
    "merges_total": ("counter", "Merges written into the resident model."),
    "merge_seconds_total": ("counter", "Seconds spent merging."),
    "work_seconds_total": ("counter", "Seconds spent on jobs, merging included."),
    "failures_total": ("counter", "Jobs that failed, by kind."),
    "waiting": ("gauge", "Jobs that wait for their turn."),
    "sessions": ("gauge", "Sessions that are open."),
}
"""No labels with names of clients or sessions: everybody with a token may read them."""


class UnknownSessionError(MergefrontError):
    """No such session, or another client's."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """``work`` on the merge of ``recipe``: ``texts`` are all that it reads, ``new_tokens`` the most that each item may
    generate; ``tokens`` counts those of an answer."""

    verb: str
    recipe: Recipe
    texts: Sequence[str]
    new_tokens: Sequence[int]
    work: Callable[[HuggingFaceModel], T]
    tokens: Callable[[T], int]

    @property
    def cost(self) -> float:
        """What it weighs in the queue: characters that are read (about four a token), tokens generated."""
        return 1.0 + sum(map(len, self.texts)) / 4 + _GENERATED * sum(self.new_tokens)


class MergeService:
    """One pool, one live model, many sessions. Everything but the jobs runs on one event loop."""

    def __init__(self, file: PoolFile, pool: MergePool, state: ServiceState, tokens: Tokens) -> None:
        self.file = file
        self.limits = file.limits
        self.pool = pool
        self.state = state
        self.tokens = tokens
        self.metrics = Metrics("mergefront_serve_", _METRICS)
        self.quotas = Quotas(state)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mergefront-serve")
        self.queue = FairQueue(self._in_thread, file.limits.waiting)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def client(self, name: str) -> Client:
        """The client that a token belongs to, or everybody on this machine."""
        declared = self.file.clients.get(name)
        return Client(name, QuotaSection() if declared is None else declared.quota)

    def open_session(self, client: Client) -> ServiceSession:
        """A new session; sessions unused for long end, and the longest unused where a client has too many."""
        now = time.time()
        for old in self.state.sessions():
            if now - old.last_used > self.limits.session_days * 86400:
                self.state.remove_session(old.id)
        own = self.state.sessions(client.name)
        for old in own[: max(0, len(own) - self.limits.sessions + 1)]:
            self.state.remove_session(old.id)
        session = ServiceSession(secrets.token_urlsafe(18), client.name, None, now, now)
        self.state.add_session(session)
        return session

    def session(self, id: str, client: Client) -> ServiceSession:
        """The client's session; raises ``UnknownSessionError``."""
        found = self.state.find_session(id)
        if found is None or found.client != client.name:
            raise UnknownSessionError("there is no such session; begin one")
        self.state.touch_session(id, time.time())
        return found

    async def ask(self, client: Client, session: ServiceSession, question: Question[T], gone: Gone) -> T:
        """The answer, in its turn; books its items and tokens.

        Raises ``UserError``, ``EvaluationError``, ``QuotaSpentError`` and the queue's errors.
        """
        verb, items = question.verb, len(question.new_tokens)
        self._check_sizes(question)
        self.pool.check(question.recipe)
        period = self.quotas.take(client, items)

        async def wanted() -> bool:
            return not await gone()

        try:
            worked: Worked[T] = await self.queue.ask(
                client.name, session.id, question.cost, lambda: self._run(question), wanted
            )
        except (QueueClosedError, QueueFullError):
            self.quotas.add(client, period, Used(-1, -items))
            raise
        except Exception as error:
            kind = error.kind if isinstance(error, EvaluationError) else type(error).__name__
            self.metrics.add("failures_total", kind=kind)
            raise
        answered = question.tokens(worked.value)
        self.quotas.add(client, period, Used(tokens=answered))
        self.metrics.add("items_total", items, verb=verb)
        self.metrics.add("tokens_total", answered, verb=verb)
        self.metrics.add("merges_total", float(worked.merged))
        self.metrics.add("merge_seconds_total", worked.merge_seconds)
        self.metrics.add("work_seconds_total", worked.seconds)
        _log.info(
            "client %s session %.6s: %s of %d items, %d tokens, merge %.3f s, %.3f s in all",
            client.name, session.id, verb, items, answered, worked.merge_seconds, worked.seconds,
        )  # fmt: skip
        return worked.value

    def _run(self, question: Question[T]) -> Worked[T]:
        """In the thread: whatever goes wrong with a candidate is the candidate's failure, not to be asked again."""
        try:
            return self.pool.run(question.recipe, question.work)
        except MergefrontError:
            raise
        except Exception as error:
            _log.exception("a job failed")
            name = type(error).__name__
            kind = "out of memory" if out_of_memory(error) else name
            raise EvaluationError(f"the merge could not be made or asked ({name})", kind=kind) from error

    def _check_sizes(self, question: Question[Any]) -> None:
        limits, items = self.limits, len(question.new_tokens)
        if items > limits.items:
            raise UserError(f"{items} items in one message; this service takes {limits.items}: send several messages")
        longest = max(map(len, question.texts), default=0)
        if longest > limits.text:
            raise UserError(f"a text of {longest} characters; this service takes {limits.text}")
        new_tokens = max(question.new_tokens, default=0)
        if new_tokens > limits.new_tokens:
            raise UserError(f"{new_tokens} new tokens; this service generates {limits.new_tokens} at most")

    def metrics_text(self) -> str:
        """The metrics with the gauges as they are now."""
        self.metrics.set("waiting", self.queue.waiting)
        self.metrics.set("sessions", len(self.state.sessions()))
        return self.metrics.text()

    async def end(self) -> None:
        """Stop working; what runs is waited for."""
        await self.queue.end()
        await self._in_thread(self.pool.release)
        self._thread.shutdown()
        self.state.close()
