"""What is refused before any route sees it, and before its body is read (ASGI middleware): requests without a token,
requests that a web page made its reader's browser send, bodies that are too large or not JSON, and too much at once.

Of these starlette's own middleware refuses foreign hosts alone, in words without a remedy; fastapi's security comes
after a body was read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mergefront.serving.tokens import Tokens

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
_OPEN_TO_ALL = ("/health", "/openapi.json")
_CLOSE = (b"connection", b"close")
"""For a connection whose body is not read to its end."""


class _TooLargeError(Exception):
    pass


class Guard:
    """``tokens`` let in; ``largest_body`` is bytes; more than ``concurrency`` requests at once are refused;
    ``loopback_only`` refuses requests that name another host."""

    def __init__(self, app: App, *, tokens: Tokens, largest_body: int, concurrency: int, loopback_only: bool) -> None:
        self._app = app
        self._tokens = tokens
        self._largest = largest_body
        self._concurrency = concurrency
        self._loopback_only = loopback_only
        self._running = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        if scope["path"] in _OPEN_TO_ALL:
            await self._app(scope, receive, send)
            return
        client = self._tokens.client(headers.get(b"authorization"))
        if client is None:
            # The connection stays, so that a client that still sends its body comes to read this.
            ask = (b"www-authenticate", b"Bearer")
            await _refuse(send, 401, "send a valid token: Authorization: Bearer TOKEN", ask)
        elif self._running >= self._concurrency:
            busy = f"{self._running} requests are being answered; ask again in a moment"
            await _refuse(send, 503, busy, (b"retry-after", b"1"))
        else:
            scope.setdefault("state", {})["client"] = client
            self._running += 1
            try:
                await self._bounded(scope, receive, send)
            finally:
                self._running -= 1

    async def _bounded(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The application's answer, unless the body is too large."""
        read, too_large = 0, False

        async def bounded() -> Message:
            nonlocal read, too_large
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._largest:
                    too_large = True
                    raise _TooLargeError
            return message

        async def unless_refused(message: Message) -> None:
            # Whatever the application makes of a body that ends early is not the answer.
            if not too_large:
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, bounded, unless_refused)
        if too_large:
            await _refuse(send, *self._too_large())

    def _too_large(self) -> tuple[int, str, tuple[bytes, bytes]]:
        return 413, f"the body is longer than {self._largest} bytes; send fewer items at once", _CLOSE

    def _refusal(self, method: str, headers: dict[bytes, str]) -> tuple[int, str, tuple[bytes, bytes]] | None:
        if b"origin" in headers:
            return 403, "this service does not answer web pages", _CLOSE
        if self._loopback_only and host_name(headers.get(b"host", "")) not in OWN_NAMES:
            return 403, "this service answers its own machine only", _CLOSE
        length = headers.get(b"content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._largest:
            return self._too_large()
        if method in ("POST", "PUT", "PATCH"):
            kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "the body has to be application/json", _CLOSE
        return None


def host_name(host: str) -> str:
    """A Host header without the port."""
    return host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host


async def _refuse(send: Send, status: int, detail: str, header: tuple[bytes, bytes]) -> None:
    body = json.dumps({"detail": detail, "kind": "refused"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), header]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
