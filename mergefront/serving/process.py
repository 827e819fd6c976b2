"""The process of a service: the address, the signals, the end."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from mergefront.optimizer.errors import UserError
from mergefront.serving.connections import BoundedConfig, ConnectionLimits

if TYPE_CHECKING:
    from fastapi import FastAPI

_PATIENCE = 60
"""Seconds that the end waits for the job that runs."""
_OPEN_FILES = 65_536


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at the address: who connects early waits. Raises ``UserError`` where none can be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()
    except OSError as error:
        hint = "choose another port" if error.errno == errno.EADDRINUSE else "check host and port"
        raise UserError(f"address {host}:{port} cannot be used ({error.strerror}); {hint}") from None
    return bound


def run_application(
    app: FastAPI, bound: socket.socket, ready: Callable[[str], None], *, closing: Callable[[], None]
) -> None:
    """Serve until SIGTERM or SIGINT: ``ready`` gets the URL, ``closing`` is called when the end begins, and what
    runs then is answered. Connections of strangers and of slow clients are bounded."""
    host, port = bound.getsockname()[:2]
    _raise_open_files()
    config = BoundedConfig(
        app,
        ConnectionLimits(),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_PATIENCE,
        backlog=256,
        h11_max_incomplete_event_size=64 * 1024,
        ws="none",
    )
    named = f"[{host}]" if ":" in host else host
    _Server(config, closing, lambda: ready(f"http://{named}:{port}")).run([bound])


def _raise_open_files() -> None:
    """Many systems let a process open 1,024 files unless it asks for more; each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """Ends with exit status 0 on a signal."""

    def __init__(self, config: uvicorn.Config, closing: Callable[[], None], ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._closing = closing
        self._ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._closing)
        # A second signal does not wait for what runs.
        self.force_exit = self.should_exit
        self.should_exit = True
