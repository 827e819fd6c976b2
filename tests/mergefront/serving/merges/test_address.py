"""The address of a service: who starts it knows at once whether it can be had, and who connects early waits."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("uvicorn")

from mergefront.optimizer.errors import UserError
from mergefront.serving.process import bound_socket


def test_a_second_service_at_the_same_port_is_refused_before_it_loads_its_pool():
    with bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be used.*another port"):
            bound_socket("127.0.0.1", port)


def test_a_client_can_connect_from_the_moment_that_the_address_is_said():
    with bound_socket("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname(), timeout=5) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
