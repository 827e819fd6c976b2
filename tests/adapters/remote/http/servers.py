"""Real HTTP servers for tests: one that answers with a function, and a proxy that damages what passes."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("drop", "truncate", "status 429", "status 500", "malformed", "delay", "garbage")


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    port: int
    """The client's end of the connection: requests with one port came over one connection."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds_per_byte: float = 0.0


def as_json(content: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(content).encode(), headers)


class Served:
    """A server that runs: its ``url`` and everything it ``received``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Received] = []


@contextmanager
def serve(answer: Callable[[Received], Answer]) -> Iterator[Served]:
    """Answer each request with a function, on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body, port = self.rfile.read(length), int(self.client_address[1])
            request = Received(self.command, self.path, dict(self.headers.items()), body, port)
            served.received.append(request)
            made = answer(request)
            self.send_response(made.status)
            for name, value in {"Content-Type": "application/json", **made.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(made.body)))
            self.end_headers()
            if not made.seconds_per_byte:
                self.wfile.write(made.body)
                return
            for byte in made.body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(made.seconds_per_byte)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            return

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # the client went away, as it may
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = Served(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


class FaultyProxy:
    """A proxy before a server: a share of the calls fails in the ways of ``FAULTS``, drawn by seed."""

    def __init__(self, upstream: str, share: float, seed: int, faults: Sequence[str]) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None and parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._share = share
        self._random = random.Random(seed)
        self._faults = faults
        self._lock = threading.Lock()
        self.calls = 0
        self.damaged: dict[str, int] = dict.fromkeys(faults, 0)
        self.answered: list[tuple[bytes, bytes]] = []
        """Head and body of the requests whose whole answers were passed on."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(connection,), daemon=True).start()

    def _draw(self) -> str | None:
        with self._lock:
            self.calls += 1
            if self._random.random() >= self._share:
                return None
            fault = self._random.choice(list(self._faults))
            self.damaged[fault] += 1
            return fault

    def _pass(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = _read_message(connection)
                if not request:
                    return
                fault = self._draw()
                if fault == "drop":
                    return
                if fault is not None and fault.startswith("status"):
                    head = f"HTTP/1.1 {fault.split()[1]} Fault\r\nRetry-After: 0\r\n"
                    connection.sendall(head.encode() + b"Content-Length: 4\r\nConnection: close\r\n\r\nnope")
                    return
                if fault == "garbage":
                    connection.sendall(b"\x00\xff this is not HTTP \r\n\r\n")
                    return
                if fault == "delay":
                    time.sleep(0.3)
                answer = self._ask(request)
                head, _, body = answer.partition(b"\r\n\r\n")
                if fault == "malformed":
                    body = b"{" + body[1:].replace(b":", b";")
                if fault == "truncate":
                    body = body[: len(body) // 2]
                connection.sendall(head + b"\r\n\r\n" + body)
                if fault in (None, "delay"):
                    asked, _, content = request.partition(b"\r\n\r\n")
                    with self._lock:
                        self.answered.append((asked, content))
            except OSError:
                return

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(self._upstream, timeout=120) as upstream:
            head, separator, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            upstream.sendall(b"\r\n".join([*lines, b"Connection: close"]) + separator + body)
            received = b""
            while part := upstream.recv(65536):
                received += part
            return received


@contextmanager
def faulty_proxy(
    upstream: str, share: float = 0.3, seed: int = 0, faults: Sequence[str] = FAULTS
) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream, share, seed, faults)
    try:
        yield proxy
    finally:
        proxy.close()


def _read_message(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            return b""
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
