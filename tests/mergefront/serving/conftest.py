"""Strangers who connect to a service."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture
def strangers() -> Iterator[Callable[..., socket.socket]]:
    """Connects to a server from an address of this machine, and sends a beginning."""
    with ExitStack() as stack:

        def connect(address: tuple[str, int], start: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
            connection = socket.create_connection(address, timeout=20, source_address=(source, 0))
            stack.callback(connection.close)
            connection.sendall(start)
            return connection

        yield connect
