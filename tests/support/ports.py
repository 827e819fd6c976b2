"""Ports for servers that tests start, stop and start again."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port that nobody listens on, below those that a system gives to outgoing connections.

    One of those could be taken by any client while the server is down for a restart.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
