"""Strangers who open connections and send no whole request keep nobody from being answered; long work is not cut."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from strangers import HALF_A_BODY, HALF_A_HEAD, wait_until_closed

from mergefront.serving.api import add_routes, problem
from mergefront.serving.connections import BoundedConfig, ConnectionLimits
from mergefront.serving.process import bound_socket
from mergefront.serving.tokens import Tokens
from mergefront.storage.database import Database

TOKEN = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def study_server(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of ``mergefront serve --studies``, a process of its own."""
    Database(f"sqlite:///{tmp_path}/studies.db").close()
    command = [sys.executable, "-m", "mergefront", "serve", "--studies", "--port", "0"]
    environment = {**os.environ, "MERGEFRONT_STUDIES_TOKEN": TOKEN}
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, "--storage", f"sqlite:///{tmp_path}/studies.db"], env=environment, stderr=written
        )
    while "served at" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    yield "127.0.0.1", int(log.read_text().split("served at http://127.0.0.1:")[1].split()[0])
    process.terminate()
    assert process.wait(30) == 0, "strangers kept the service from ending"


def answers(address: tuple[str, int], path: str, **headers: str) -> int:
    return httpx.get(f"http://{address[0]}:{address[1]}{path}", headers=headers, timeout=20).status_code


@pytest.mark.long
def test_half_open_connections_keep_nobody_from_a_study(
    study_server: tuple[str, int], strangers: Callable[..., socket.socket]
) -> None:
    """Anyone who reaches the port could stop every harness that asks and tells there."""
    begun = (b"", HALF_A_HEAD, HALF_A_BODY)
    held = [strangers(study_server, begun[number % 3], f"127.0.0.{2 + number % 4}") for number in range(600)]
    assert answers(study_server, "/v1/studies", **BEARER) == 200
    # The oldest are closed until 64 of an address, and 256 altogether, are left.
    closed = [wait_until_closed(one) for one in held[:300]]
    assert any(b"401" in text for text in closed), "a body was waited for before the token was asked for"
    assert answers(study_server, "/v1/studies", **BEARER) == 200


@pytest.fixture
def hurried() -> Iterator[tuple[str, int]]:
    """A service of this process with limits of a third of a second, and routes that are slow or answer at length."""
    routes = APIRouter()

    @routes.post("/slow")
    async def slow(request: Request) -> int:
        await asyncio.sleep(1.5)
        return len(await request.body())

    @routes.get("/long")
    async def long() -> Response:
        return Response(b"x" * 50_000_000)

    app = FastAPI()
    bound = bound_socket("127.0.0.1", 0)
    add_routes(
        app,
        [routes],
        None,
        Tokens({}),
        lambda error: problem(400, str(error)),
        largest_body=1000,
        concurrency=2,
        loopback_only=True,
    )
    limits = ConnectionLimits(head=0.3, body=0.3, unread=0.3, per_address=4)
    server = uvicorn.Server(BoundedConfig(app, limits, log_config=None, ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    yield bound.getsockname()
    server.should_exit = True
    thread.join()
    bound.close()


@pytest.mark.parametrize("begun", [b"", HALF_A_HEAD, HALF_A_BODY.replace(b"/v1/studies", b"/slow")])
def test_a_request_that_comes_byte_by_byte_is_not_waited_for(
    hurried: tuple[str, int], strangers: Callable[..., socket.socket], begun: bytes
) -> None:
    """Each byte would keep a connection alive, so that a few hundred clients could fill the service for ever."""
    connection = strangers(hurried, begun)
    with pytest.raises(OSError, match=r"reset|Broken pipe|closed"):
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.05)
    assert b"200" not in wait_until_closed(connection)


def test_work_and_a_slow_reader_are_not_cut(hurried: tuple[str, int], strangers: Callable[..., socket.socket]) -> None:
    """An evaluation takes minutes, and a front is read over slow lines."""
    crowd = [strangers(hurried, HALF_A_HEAD) for _ in range(20)]
    answer = httpx.post(f"http://127.0.0.1:{hurried[1]}/slow", json="x" * 100, timeout=20)
    assert (answer.status_code, answer.json()) == (200, 102)
    for one in crowd:
        wait_until_closed(one)
    reader = strangers(hurried, b"GET /long HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    received = 0
    while part := reader.recv(2_000_000):
        received += len(part)
        time.sleep(0.03)
    assert received > 50_000_000


def test_an_answer_that_nobody_reads_is_given_up(
    hurried: tuple[str, int], strangers: Callable[..., socket.socket]
) -> None:
    """Clients that never read would keep answers in the service's memory."""
    reader = strangers(hurried, b"GET /long HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    time.sleep(1.0)
    assert len(wait_until_closed(reader)) < 50_000_000


def test_too_much_at_once_is_told_to_ask_again(hurried: tuple[str, int]) -> None:
    with ThreadPoolExecutor(3) as pool:
        url = f"http://127.0.0.1:{hurried[1]}/slow"
        given = list(pool.map(lambda _: httpx.post(url, json="x", timeout=20), range(3)))
    assert sorted(answer.status_code for answer in given) == [200, 200, 503]
    assert [answer.headers["retry-after"] for answer in given if answer.status_code == 503] == ["1"]
