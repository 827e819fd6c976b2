"""No request makes the study server fail, and none but a right one changes a study."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
import httpx

import mergefront as mf
from mergefront.serving.study_server import StudyServer, make_application
from mergefront.storage.database import Database
from mergefront.storage.studies import load

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
paths = st.sampled_from(
    ["/v1/studies/fuzzed/ask", "/v1/studies/fuzzed/trials/0/tell", "/v1/studies/fuzzed/trials/0/fail"]
) | st.text(max_size=30).map(lambda text: f"/v1/studies/{quote(text, safe='')}/ask")


class Client:
    def __init__(self, url: str) -> None:
        self.database = Database(url)
        application = make_application(StudyServer(self.database, None), loopback_only=True)
        self.transport = httpx.ASGITransport(application, raise_app_exceptions=True)

        self.study = mf.Study(self.database, load(self.database, "fuzzed"))

    def send(self, method: str, path: str, content: bytes) -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://127.0.0.1") as client:
                headers = {"content-type": "application/json"}
                return await client.request(method, path, content=content, headers=headers)

        return asyncio.run(once())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A study whose budget is spent: whatever gets through changes nothing."""
    url = f"sqlite:///{tmp_path_factory.mktemp('fuzzed')}/study.db"
    mf.search(
        space=mf.MergeSpace(["a", "b"], method="ties"),
        evaluate=lambda recipe: 0.5,
        objectives=["score"],
        sampler="random",
        evaluations=2,
        storage=url,
        name="fuzzed",
    )
    made = Client(url)
    yield made
    made.database.close()


@settings(max_examples=60, deadline=None)
@given(path=paths, body=json_values)
def test_any_json(client: Client, path: str, body: Any) -> None:
    import json

    answer = client.send("POST", path, json.dumps(body).encode())
    assert answer.status_code == 204 or 400 <= answer.status_code < 500, answer.text
    assert client.study.ledger.finished_count() == 2


@settings(max_examples=60, deadline=None)
@given(path=paths, body=st.binary(max_size=200), method=st.sampled_from(["POST", "PUT", "GET", "DELETE", "PATCH"]))
def test_any_bytes(client: Client, path: str, body: bytes, method: str) -> None:
    answer = client.send(method, path, body)
    assert answer.status_code in (200, 204) or 400 <= answer.status_code < 500, answer.text
    assert client.study.ledger.finished_count() == 2


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 50_000, b'{"lease": ' + b"9" * 100_000 + b"}", b'{"lease": 1e999}', b'{"lease": NaN}'],
    ids=["deep lists", "deep mappings", "a long number", "infinity", "not a number"],
)
def test_bodies_that_parsers_dislike(client: Client, body: bytes) -> None:
    answer = client.send("POST", "/v1/studies/fuzzed/ask", body)
    assert 400 <= answer.status_code < 500, answer.text
    assert Path(client.database.url.removeprefix("sqlite:///")).exists()
