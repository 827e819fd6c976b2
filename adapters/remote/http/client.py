"""One asynchronous HTTP client for every API backend, on httpx, which itself repeats only what did not connect.

``HttpClient.ask`` sends one request until it is answered: bounded concurrency, a time limit over the
whole exchange, retries with backoff, a circuit breaker, a limit on the response's size, a budget, and
a cache in front of all of it. ``HttpClient.run`` lets plain (blocking) code await it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from mergefront.adapters.remote.http.breaker import BreakerPolicy, CircuitBreaker
from mergefront.adapters.remote.http.budget import Budget, Price, Usage
from mergefront.adapters.remote.http.cache import MemoryCache, ResponseCache, request_key
from mergefront.adapters.remote.http.endpoint import ApiKey, KeyFilter, checked_url, is_loopback
from mergefront.adapters.remote.http.json_answers import (
    DamagedAnswerError,
    MalformedAnswerError,
    excerpt,
    parse_json,
    stated_error,
)
from mergefront.adapters.remote.http.retry import REFUSED_CONTENT_STATUS, TRANSIENT_STATUS, RetryPolicy, retry_after
from mergefront.optimizer.errors import EvaluationError, SearchStoppedError

T = TypeVar("T")
Body = Mapping[str, Any] | Sequence[Any] | None
"""What a request says, as JSON."""

_LONGEST_REASON = 10_000
"""Characters of a refusal that are read; messages have the first of them."""
_PATIENCE = 10.0
"""Seconds for which a closing client waits for answers that are paid for."""


@dataclass(frozen=True)
class ClientPolicy:
    """How a server is to be treated; see each part. ``timeout`` is seconds for one whole exchange,
    ``longest_response`` bytes, ``longest_retry_after`` seconds that a server may ask to wait."""

    concurrency: int = 4
    timeout: float = 120.0
    longest_response: int = 32 * 2**20
    longest_retry_after: float = 300.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    budget: Budget = field(default_factory=Budget)
    price: Price = field(default_factory=Price)
    where: str = "backend"
    """The section of the study file that says all this, for messages."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What was read from an answer, and the tokens that it cost (None where they are unknown)."""

    value: T
    input_tokens: int | None = 0
    output_tokens: int | None = 0


class RefusedError(EvaluationError):
    """The server refuses one request for good; ``reason`` is what it says, ``status`` its status."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message, kind="error answer" if status < 300 else f"http {status}")
        self.status = status
        self.reason = reason


class _TransientError(Exception):
    """One attempt that failed; ``wait`` is what the server asked for (seconds)."""

    def __init__(self, kind: str, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.wait = wait


@dataclass(frozen=True)
class _Question(Generic[T]):
    """One request, and how its answer is understood."""

    method: str
    path: str
    body: Body
    parse: Callable[[str], Any]
    read: Callable[[Any], Reply[T]]
    refused: Callable[[str], Any]

    def understood(self, text: str) -> Reply[T]:
        return self.read(self.parse(text))


class HttpClient:
    """A client of one server.

    ``url`` is the server's base address; ``api_key`` is sent as a bearer token and kept out of every
    message. ``cache`` keeps responses under the identity ``server`` (set it with ``identify`` once the
    server has said which model it runs). ``seed`` spreads the retries. Close it when done.
    """

    def __init__(
        self,
        url: str,
        policy: ClientPolicy | None = None,
        *,
        api_key: ApiKey | None = None,
        cache: ResponseCache | None = None,
        server: str | None = None,
        seed: int = 0,
        allow_plain_http: bool = False,
    ) -> None:
        self.url = checked_url(url, has_key=api_key is not None, allow_plain_http=allow_plain_http)
        self.policy = policy or ClientPolicy()
        self.cache: ResponseCache = MemoryCache() if cache is None else cache
        self._key = api_key
        self._seed = seed
        self.usage = Usage()
        """What was sent, cached answers not counted."""
        self._before = Usage()
        self.identify(server if server is not None else self.url)
        self._loop = _LoopThread(f"mergefront-http {self.url}")
        self._files = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mergefront-http-cache")
        self._gate = asyncio.Semaphore(self.policy.concurrency)
        self._under_way: dict[str, asyncio.Future[str]] = {}
        self._sending: set[asyncio.Future[Any]] = set()
        self._breaker = CircuitBreaker(self.policy.breaker, self.url, self._loop.time)
        self._log_filter = None if api_key is None else KeyFilter(api_key)
        if self._log_filter is not None:
            self._log_filter.install()
        self._addresses: dict[str, httpx.URL] = {}
        self._pooled = self._new_sender(keep_alive=True)
        self._single_use = self._new_sender(keep_alive=False)

    def _headers(self) -> list[tuple[str, str]]:
        headers = [("Accept", "application/json"), ("Accept-Encoding", "identity"), ("User-Agent", "mergefront")]
        return headers if self._key is None else [*headers, ("Authorization", self._key.header())]

    def _new_sender(self, *, keep_alive: bool) -> httpx.AsyncClient | httpx.AsyncHTTPTransport:
        connections = self.policy.concurrency
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections if keep_alive else 0)
        # On this machine there are no proxies to ask the environment for, and what else httpx's client does (cookies,
        # redirections) is not wanted here; it takes longer than a small model's answer.
        if is_loopback(self.url):
            is_encrypted = self.url.startswith("https:")  # reading certificates takes a while
            return httpx.AsyncHTTPTransport(limits=limits, trust_env=False, verify=is_encrypted)
        # The whole exchange has a limit, see _exchange.
        return httpx.AsyncClient(timeout=None, limits=limits, follow_redirects=False)

    def identify(self, server: str) -> None:
        """Say whose answers these are: the cache's entries and the budget belong to this identity."""
        self.server = server
        self._before = Usage(*self.cache.spent(server))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for ``work`` from plain code; an interruption cancels it."""
        return self._loop.run(work)

    async def ask(
        self,
        method: str,
        path: str,
        body: Body,
        read: Callable[[Any], Reply[T]],
        *,
        cached: bool = True,
        state: str = "",
        lasting_path: str | None = None,
        lasting_body: Body = None,
        parse: Callable[[str], Any] = parse_json,
        refused: Callable[[str], Any] = lambda _: None,
    ) -> T:
        """The answer to one request as ``read`` understands it.

        ``read`` gets the parsed JSON (or what ``parse`` makes of the text; ``DamagedAnswerError`` is for a text that
        may have been damaged and is asked for again); it raises ``EvaluationError`` for an answer that is wrong
        (final). ``refused`` gets the reason of a refusal, and may give an answer that stands in its place for once.
        Only answers that were read are cached. Equal requests under way at once are sent once.
        ``state`` names what the answer depends on besides the request, such as settings that an earlier request
        made; ``lasting_path`` and ``lasting_body`` stand for the path and body in the cache where those have a
        passing name in them, such as a session's.

        Raises ``EvaluationError`` (kinds "http <status>", "timeout", "connection", "malformed response",
        "response too large"), ``BudgetExhaustedError``, and ``SearchStoppedError`` when the server refuses
        the key or is gone.
        """
        question = _Question(method, path, body, parse, read, refused)
        if not cached:
            return await self._answered(question, None)
        key = request_key(
            self.server, method, lasting_path or path, body if lasting_body is None else lasting_body, state
        )
        while (pending := self._under_way.get(key)) is not None:
            await asyncio.wait([pending])
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._under_way[key] = done
        try:
            found = await self._in_files(self.cache.find, key)
            if found is not None:
                # Kept by a version that read it otherwise.
                with contextlib.suppress(MalformedAnswerError, DamagedAnswerError):
                    return question.understood(found).value
            return await self._answered(question, key)
        finally:
            del self._under_way[key]
            done.cancel()

    async def _answered(self, question: _Question[T], key: str | None) -> T:
        """Send until there is an answer that is understood."""
        method, path = question.method, question.path
        purpose = key or f"{method} {path}"
        policy = self.policy.retry
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._gate, self._breaker.passage():
                    # What was sent is paid for: its answer is kept even if nobody waits for it any more.
                    sent = self._in_background(self._attempt(question, key, fresh=attempt > 1))
                    value, kept = await asyncio.shield(sent)
                    self._breaker.answered()
            except EvaluationError:
                self._breaker.answered()
                raise
            except _TransientError as fault:
                self._breaker.failed(str(fault))
                if attempt >= policy.attempts:
                    raise EvaluationError(
                        f"{method} {self.url}{path}: {fault} (after {attempt} attempts)", kind=fault.kind
                    ) from None
                await asyncio.sleep(self._pause(attempt, purpose, fault))
                continue
            # The next request is on its way while this one's answer is written.
            if kept is not None:
                await asyncio.shield(kept)
            return value

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._sending.add(task)
        task.add_done_callback(self._sent_one)
        return task

    def _sent_one(self, task: asyncio.Future[Any]) -> None:
        self._sending.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has seen it

    def _pause(self, attempt: int, purpose: str, fault: _TransientError) -> float:
        wait = self.policy.retry.wait(attempt, self._seed, purpose)
        if fault.wait is None:
            return wait
        if fault.wait > self.policy.longest_retry_after:
            raise SearchStoppedError(
                f"{self.url} asks to wait {fault.wait:.0f} seconds (the most that is waited for is "
                f"{self.policy.longest_retry_after:.0f}). What finished is kept; resume the study later"
            )
        return max(wait, fault.wait)

    async def _attempt(
        self, question: _Question[T], key: str | None, *, fresh: bool
    ) -> tuple[T, asyncio.Future[None] | None]:
        """Send once; returns what was understood, and the end of keeping the answer under ``key``."""
        self.policy.budget.check(self._before + self.usage, self.policy.price, self.policy.where)
        self.usage = self.usage + Usage(requests=1)
        status, headers, text = await self._exchange(question.method, question.path, question.body, fresh)
        try:
            answer = question.parse(text) if status < 300 else None
            error = (status, text) if status >= 300 else stated_error(answer)
            if error is not None:
                answer = question.refused(error[1]) if error[0] in REFUSED_CONTENT_STATUS else None
                if answer is None:
                    raise self._refusal(question.method, question.path, *error, headers)
                key = None  # it cost nothing, and another start of the server may take the request
            reply = question.read(answer)
        except DamagedAnswerError as damage:
            raise _TransientError(
                "malformed response", self._scrub(f"the answer {damage}: {excerpt(text)!r}")
            ) from None
        except MalformedAnswerError as fault:
            raise MalformedAnswerError(
                self._scrub(f"{question.method} {self.url}{question.path}: the answer {fault}: {excerpt(text)!r}")
            ) from None
        spent = Usage(0, reply.input_tokens or 0, reply.output_tokens or 0)
        self.usage = self.usage + spent
        if reply.input_tokens is None or reply.output_tokens is None:
            self.check_counted()
        if key is None:
            return reply.value, None
        cost = dataclasses.astuple(Usage(1) + spent)
        return reply.value, self._in_background(self._in_files(self.cache.keep, key, self.server, text, cost))

    def check_counted(self) -> None:
        """Raises ``SearchStoppedError`` when a limit needs tokens, which this server does not report."""
        self.policy.budget.check_counted(self.url, self.policy.price)

    async def _exchange(self, method: str, path: str, body: Body, fresh: bool) -> tuple[int, httpx.Headers, str]:
        # After a fault the connection, and others of its age, may be dead: a repeated attempt opens its own.
        sender = self._single_use if fresh else self._pooled
        request = self._request(method, path, body)
        try:
            # httpx could limit each read; this limits the exchange, so that a trickle cannot hold it for ever.
            async with asyncio.timeout(self.policy.timeout):
                if isinstance(sender, httpx.AsyncHTTPTransport):
                    response = await sender.handle_async_request(request)
                else:
                    response = await sender.send(request, stream=True)
                try:
                    raw = await self._body(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            raise _TransientError("timeout", f"no answer within {self.policy.timeout:g} seconds") from None
        except httpx.TransportError as error:
            raise _TransientError("connection", f"{type(error).__name__}: {excerpt(self._scrub(str(error)))}") from None
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            # JSON is UTF-8, whatever an answer is said to be in; only where it is not, that counts.
            try:
                text = raw.decode(response.charset_encoding or "utf-8")
            except (UnicodeError, LookupError):
                if response.status_code < 300:
                    raise _TransientError("malformed response", "the answer is not UTF-8") from None
                text = raw.decode("utf-8", "replace")
        if response.status_code < 300:
            return response.status_code, response.headers, text if self._key is None else self._key.scrub_answer(text)
        return response.status_code, response.headers, self._scrub(text[:_LONGEST_REASON])

    def _request(self, method: str, path: str, body: Body) -> httpx.Request:
        """Made here, because httpx's own way parses the address and joins the headers anew each time."""
        if path not in self._addresses:
            self._addresses[path] = httpx.URL(self.url + path)
        headers = self._headers()
        if body is None:
            return httpx.Request(method, self._addresses[path], headers=headers)
        headers.append(("Content-Type", "application/json"))
        content = json.dumps(body, allow_nan=False).encode()
        return httpx.Request(method, self._addresses[path], headers=headers, content=content)

    async def _body(self, response: httpx.Response) -> bytes:
        longest = self.policy.longest_response
        received = bytearray()
        # Some proxies compress unasked. Nothing longer than the limit is unpacked.
        packed = response.headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip", "deflate")
        unpack = zlib.decompressobj(wbits=47).decompress if packed else None
        async for chunk in response.aiter_raw():
            try:
                received += chunk if unpack is None else unpack(chunk, longest + 1)
            except zlib.error:
                raise _TransientError("malformed response", "the compressed answer cannot be unpacked") from None
            if len(received) > longest:
                raise EvaluationError(
                    f"{self.url}: the answer is longer than {longest:,} bytes", kind="response too large"
                )
        return bytes(received)

    def _refusal(self, method: str, path: str, status: int, text: str, headers: httpx.Headers) -> Exception:
        where = f"{method} {self.url}{path}"
        if status in (401, 403):
            hint = "no API key was sent; name its variable: api_key_env" if self._key is None else "check the API key"
            return SearchStoppedError(f"{where}: the server refused access (status {status}); {hint}")
        if status == 402 or (status in (200, 429) and "insufficient_quota" in text):
            return SearchStoppedError(f"{where}: the server says that the account's credit or quota is used up")
        if status in TRANSIENT_STATUS:
            return _TransientError(
                f"http {status}",
                f"status {status}: {excerpt(self._scrub(text))!r}",
                retry_after(headers.get("retry-after")) if status in (429, 503) else None,
            )
        if 300 <= status < 400:
            return EvaluationError(
                f"{where}: status {status}, a redirection, which is not followed (it could leak the key); "
                "give the server's final address",
                kind=f"http {status}",
            )
        return RefusedError(f"{where}: status {status}: {excerpt(self._scrub(text))!r}", status, text)

    def _scrub(self, text: str) -> str:
        return text if self._key is None else self._key.scrub(text)

    async def _in_files(self, function: Callable[..., T], *arguments: Any) -> T:
        """The cache may wait for a database's lock, which must not stop the requests under way."""
        if isinstance(self.cache, MemoryCache):
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)

    def close(self) -> None:
        """Close connections and the thread; nothing can be asked afterwards.

        Answers that are under way are waited for, at most ``_PATIENCE`` seconds.
        """

        async def close() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    while self._sending:
                        await asyncio.wait(self._sending)
            for task in self._sending:
                task.cancel()
            await self._pooled.aclose()
            await self._single_use.aclose()

        if self._loop.is_running:
            self.run(close())
            self._loop.stop()
            self._files.shutdown()
            if self._log_filter is not None:
                self._log_filter.remove()

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of coroutines that run together, in their order; the first error cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as errors:
        # A wish to stop the search outweighs the failure of a candidate.
        first: BaseException = errors.subgroup(SearchStoppedError) or errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
    return [task.result() for task in tasks]


class _LoopThread:
    """An event loop in a thread of its own, so that plain code, itself perhaps in a loop, can wait for it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def time(self) -> float:
        return self._loop.time()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
