"""What is refused before any route sees it (ASGI middleware): bodies that are too large, requests that a web
page made its reader's browser send, and bodies that are not JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")


class _TooLargeError(Exception):
    pass


class Guard:
    """``largest_body`` is bytes; ``loopback_only`` refuses requests that name another host."""

    def __init__(self, app: App, *, largest_body: int, loopback_only: bool) -> None:
        self._app = app
        self._largest = largest_body
        self._loopback_only = loopback_only

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
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
            await _refuse(send, 413, f"the body is longer than {self._largest} bytes; send fewer items at once")

    def _refusal(self, method: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        if b"origin" in headers:
            return 403, "this service does not answer web pages"
        if self._loopback_only and host_name(headers.get(b"host", "")) not in OWN_NAMES:
            return 403, "this service answers its own machine only"
        length = headers.get(b"content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._largest:
            return 413, f"the body is longer than {self._largest} bytes; send fewer items at once"
        if method in ("POST", "PUT", "PATCH"):
            kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "the body has to be application/json"
        return None


def host_name(host: str) -> str:
    """A Host header without the port."""
    return host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail, "kind": "refused"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # The rest of a body that is too large is not read, so that the connection cannot be used again.
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
