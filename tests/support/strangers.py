"""Clients that begin a request and never end it."""

from __future__ import annotations

import socket

HALF_A_HEAD = b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n"
HALF_A_BODY = HALF_A_HEAD + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"


def wait_until_closed(connection: socket.socket) -> bytes:
    """What came before the server closed."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received
