"""``mergefront serve`` as a real process: its answers, what it refuses, its end and its restart."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from strangers import HALF_A_HEAD, wait_until_closed

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Chat, GenerationRequest, Message, ScoringRequest
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.remote.backend_types import make_backend, read_settings
from mergefront.adapters.remote.http.client import HttpClient
from mergefront.adapters.remote.openai.backend import OpenAIModel
from mergefront.adapters.remote.openai.wire import OpenAIWire
from mergefront.optimizer.errors import EvaluationError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
TOKENS = {"ALICE_TOKEN": ALICE, "BOB_TOKEN": BOB}
CLIENTS = {"alice": {"token_env": "ALICE_TOKEN"}, "bob": {"token_env": "BOB_TOKEN"}}
SPACE = MergeSpace({"whole": "whole", "lora": "lora"}, method="ties", parameters={"weight": [0, 1]})
RECIPES = [
    SPACE.recipe({"weight[whole]": 0.7, "weight[lora]": 0.4}),
    SPACE.recipe({"weight[whole]": 0.1, "weight[lora]": 1.0}),
    Recipe("task_arithmetic", {"whole": "whole", "lora": "lora"}, {"weight[whole]": 0.5, "weight[lora]": -0.5}, "x"),
    Recipe("dare_linear", {"whole": "w", "lora": "l"}, {"weight[whole]": 1, "weight[lora]": 1, "density[whole]": 0.5}),
]
SCORED = [ScoringRequest("Question: what is two plus two? Answer:", " four"), ScoringRequest("", "Is it B?")]
WRITTEN = [GenerationRequest("Write 425 in French:", 6), GenerationRequest("Sort 23 43", 4, ("3",))]


def ask(served: Any, method: str, path: str, token: str | None = ALICE, **more: Any) -> httpx.Response:
    headers = {**({} if token is None else {"Authorization": f"Bearer {token}"}), **more.pop("headers", {})}
    # http has nothing to verify, and reading all certificates takes longer than the request.
    quick: dict[str, Any] = {"trust_env": False, "verify": False, "timeout": 60}
    return httpx.request(method, f"{served.url}{path}", headers=headers, **quick, **more)


def wire_recipe(recipe: Recipe) -> dict[str, Any]:
    return {**recipe.to_json(), "models": {name: name for name in recipe.models}, "base_model": None}


def backend(url: str, **more: Any) -> Any:
    settings = {"type": "merge_service", "url": url, "pool": "tiny", "longest_wait": 0.3, **more}
    return make_backend(read_settings(settings), SPACE, ModelPlaces(Path()))


def test_clients_get_what_local_weights_would_answer_and_openai_clients_too(
    pool_folder: Path, pool_file: Callable[..., Path], start: Callable[..., Any]
):
    """Users of a service would get scores of other merges than they asked for."""
    local = LocalBackend.from_checkpoints(
        pool_folder / "base", {"whole": pool_folder / "whole", "lora": pool_folder / "lora"}, device="cpu"
    )
    served = start(pool_file())
    remote = backend(served.url)
    session = ask(served, "POST", "/v1/sessions", json={"pool": "tiny"}).json()
    assert session["models"] == ["whole", "lora"]
    client = HttpClient(f"{served.url}/v1")
    model = OpenAIModel(OpenAIWire(client, session["session_id"]))
    for recipe in RECIPES:
        with local.apply(recipe) as here, remote.apply(recipe) as there:
            expected = here.loglikelihood(SCORED)
            answers = there.loglikelihood(SCORED)
            assert [one.logprob for one in answers] == pytest.approx([one.logprob for one in expected], abs=1e-4)
            assert [one.tokens for one in answers] == [one.tokens for one in expected]
            assert there.generate(WRITTEN) == here.generate(WRITTEN)
            chat = Chat((Message("user", "What is two plus two?"),), options='{"thinking": true}')
            likelihoods = [one.loglikelihood([ScoringRequest(chat, "four")])[0].logprob for one in (here, there)]
            assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-4)
            put = ask(
                served, "PUT", f"/v1/sessions/{session['session_id']}/merge", json={"recipe": wire_recipe(recipe)}
            )
            assert put.status_code == 200, put.text
            client.identify(recipe.digest)  # another merge of the same name
            scored = model.loglikelihood(SCORED[:1])[0]
            assert scored.logprob == pytest.approx(expected[0].logprob, abs=1e-4)
            assert scored.tokens == expected[0].tokens and scored.is_greedy == expected[0].is_greedy
            assert model.generate(WRITTEN)[0].text == here.generate(WRITTEN)[0].text
    listed = ask(served, "GET", "/v1/models").json()["data"]
    assert [one["id"] for one in listed] == [session["session_id"]]
    metrics = ask(served, "GET", "/metrics").text
    assert 'mergefront_serve_items_total{verb="loglikelihood"} 12' in metrics
    # Each recipe was merged once for all its messages.
    assert f"mergefront_serve_merges_total {len(RECIPES)}" in metrics
    remote.close()
    client.close()


@pytest.mark.long
def test_no_completion_is_of_another_sessions_merge(pool_file: Callable[..., Path], start: Callable[..., Any]):
    """One live model serves all sessions: a client would get what another one's merge says."""
    served = start(pool_file(clients=CLIENTS), **TOKENS)
    weights = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    sessions = {}
    for place, weight in enumerate(weights):
        token = (ALICE, BOB)[place % 2]
        session = ask(served, "POST", "/v1/sessions", token, json={"pool": "tiny"}).json()["session_id"]
        recipe = wire_recipe(SPACE.recipe({"weight[whole]": weight, "weight[lora]": 1.0 - weight}))
        ask(served, "PUT", f"/v1/sessions/{session}/merge", token, json={"recipe": recipe})
        sessions[session] = token

    def completed(session: str) -> list[float]:
        body = {
            "model": session,
            "prompt": "Sort 23 43 12:",
            "max_tokens": 0,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        answer = ask(served, "POST", "/v1/completions", sessions[session], json=body)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["choices"][0]["logprobs"]["token_logprobs"][1:])

    known = {session: completed(session) for session in sessions}
    assert len({round(sum(values), 4) for values in known.values()}) == len(weights), "the merges answer alike"
    order = [session for place in range(8) for session in [*sessions][place % 3 :: 2]]
    with ThreadPoolExecutor(len(order)) as clients:
        for session, values in zip(order, clients.map(completed, order), strict=True):
            assert values == pytest.approx(known[session], abs=1e-4)


@pytest.mark.long
def test_a_restart_in_the_middle_of_a_search_loses_nothing(
    pool_file: Callable[..., Path], start: Callable[..., Any], tmp_path: Path
):
    """A provider that restarts the service would end its users' searches."""
    path = pool_file()
    served = start(path)
    port = served.url.rpartition(":")[2]
    items = [ScoringRequest(f"What is {n}?", f" {n}") for n in range(40)]
    undisturbed = backend(served.url)
    with undisturbed.apply(RECIPES[0]) as model:
        expected = model.loglikelihood(items)
    undisturbed.close()
    remote = backend(served.url, concurrency=1, attempts=100)
    answers: list[Any] = []

    def search() -> None:
        for _ in range(3):
            for recipe in RECIPES[:2]:
                remote.client.identify(str(len(answers)))  # nothing comes from the client's memory
                with remote.apply(recipe) as model:
                    answers.append(model.loglikelihood(items))

    worker = threading.Thread(target=search)
    worker.start()
    while not answers:
        time.sleep(0.01)
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()
    assert len(answers) < 6, "the search had ended before the restart, so nothing was tested"
    start(path, "--port", port)
    worker.join(60)
    assert len(answers) == 6
    assert [one.logprob for one in answers[4]] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    remote.close()


@pytest.mark.long
def test_only_tokens_open_the_service_and_clients_do_not_see_each_other(
    pool_file: Callable[..., Path], start: Callable[..., Any], tmp_path: Path
):
    """Strangers could use a provider's machine, or read other people's sessions."""
    (tmp_path / "bob.token").write_text(f"{BOB}\n")
    clients = {"alice": {"token_env": "ALICE_TOKEN"}, "bob": {"token_file": "bob.token"}}
    served = start(pool_file(clients=clients), ALICE_TOKEN=ALICE)
    assert ask(served, "GET", "/health", None).status_code == 200
    assert ask(served, "GET", "/openapi.json", None).status_code == 200
    for token in (None, "x", "wrong", ALICE[:-1], f"{ALICE}x", "ä" * 20):
        headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
        for method, path in (("POST", "/v1/sessions"), ("GET", "/metrics"), ("GET", "/v1/models")):
            answer = ask(served, method, path, None, headers=headers, json={"pool": "tiny"})
            assert answer.status_code == 401, (token, path)
    session = ask(served, "POST", "/v1/sessions", json={"pool": "tiny"}).json()["session_id"]
    body = {"recipe": wire_recipe(RECIPES[0]), "requests": [{"context": "a", "continuation": "b"}]}
    assert ask(served, "POST", f"/v1/sessions/{session}/loglikelihood", BOB, json=body).status_code == 404
    assert ask(served, "GET", f"/v1/sessions/{session}", BOB).status_code == 404
    assert ask(served, "DELETE", f"/v1/sessions/{session}", BOB).status_code == 404
    assert ask(served, "POST", f"/v1/sessions/{session}/loglikelihood", json=body).status_code == 200
    assert served.stop() == 0
    kept = b"".join(file.read_bytes() for file in tmp_path.glob("merge_server.db*")) + served.log.read_bytes()
    assert ALICE.encode() not in kept and BOB.encode() not in kept
    assert b"client alice" in kept


@pytest.mark.long
def test_half_open_connections_keep_nobody_from_a_merge(
    pool_file: Callable[..., Path], start: Callable[..., Any], strangers: Callable[..., socket.socket]
):
    """Anyone who reaches the port could stop every search that asks there, without a token."""
    served = start(pool_file(clients={"alice": {"token_env": "ALICE_TOKEN"}}), ALICE_TOKEN=ALICE)
    address = ("127.0.0.1", int(served.url.rpartition(":")[2]))
    held = [strangers(address, HALF_A_HEAD) for _ in range(1100)]
    assert ask(served, "GET", "/v1/models").status_code == 200
    for one in held[:1000]:
        wait_until_closed(one)
    assert ask(served, "GET", "/v1/models").status_code == 200
    assert served.stop() == 0


@pytest.mark.long
def test_a_quota_ends_one_client_and_not_the_other_and_is_remembered(
    pool_file: Callable[..., Path], start: Callable[..., Any]
):
    """A client could use more than was granted by making the service restart, or by asking at once."""
    clients = {
        "alice": {"token_env": "ALICE_TOKEN", "quota": {"items": 5, "per": "ever"}},
        "bob": {"token_env": "BOB_TOKEN", "quota": {"requests": 2}},
    }
    path = pool_file(clients=clients)

    def statuses(served: Any, *items: int, token: str = ALICE) -> list[int]:
        session = ask(served, "POST", "/v1/sessions", token, json={"pool": "tiny"}).json()["session_id"]
        path = f"/v1/sessions/{session}/loglikelihood"
        item = {"context": "a", "continuation": "b"}
        bodies = [{"recipe": wire_recipe(RECIPES[0]), "requests": [item] * count} for count in items]
        answers = [ask(served, "POST", path, token, json=body) for body in bodies]
        if answers[-1].status_code == 429:
            assert 0 < int(answers[-1].headers["retry-after"]) <= 86400
        return [answer.status_code for answer in answers]

    served = start(path, **TOKENS)
    assert statuses(served, 4, 2) == [200, 402]
    served.stop()
    again = start(path, **TOKENS)
    assert statuses(again, 1, 1) == [200, 402]
    assert statuses(again, 1, 1, 1, token=BOB) == [200, 200, 429]


@pytest.fixture(scope="module")
def served(module_pool_file: Callable[..., Path], module_start: Callable[..., Any]) -> Any:
    """A service with narrow limits, for whoever reaches this machine."""
    return module_start(module_pool_file(limits={"body": 20_000, "items": 10, "text": 1000, "new_tokens": 8}))


def test_what_is_wrong_or_too_large_is_refused_with_its_reason(served: Any):
    """One careless or hostile message could end the service or be answered with something else."""
    session = ask(served, "POST", "/v1/sessions", json={"pool": "tiny"}).json()["session_id"]
    path = f"/v1/sessions/{session}/loglikelihood"
    good = wire_recipe(RECIPES[0])
    item = {"context": "a", "continuation": "b"}

    def refused(status: int, words: str, to: str = path, **body: Any) -> None:
        answer = ask(served, "POST", to, json=body)
        assert answer.status_code == status and words in answer.text, answer.text

    refused(404, "tiny", "/v1/sessions", pool="tony")
    refused(400, "takes 10", recipe=good, requests=[item] * 11)
    refused(400, "1001 characters", recipe=good, requests=[{**item, "context": "a" * 1001}])
    refused(413, "20000 bytes", recipe=good, requests=[{**item, "context": "a" * 30_000}])
    refused(400, "'ties'", recipe={**good, "method": "tie"}, requests=[item])
    refused(
        400,
        "no model 'other'",
        recipe={**good, "models": {"other": "x"}, "params": {"weight[other]": 1}},
        requests=[item],
    )
    refused(422, "base_model", recipe={**good, "base_model": "/etc/passwd"}, requests=[item])
    refused(422, "requests", recipe=good, requests=[])
    refused(422, "surprise", recipe=good, requests=[item], surprise=1)
    refused(
        400,
        "8 at most",
        f"/v1/sessions/{session}/generate",
        recipe=good,
        requests=[{"prompt": "a", "max_new_tokens": 9}],
    )
    refused(400, "no merge yet", "/v1/completions", model=session, prompt="a", temperature=0)
    refused(422, "temperature", "/v1/completions", model=session, prompt="a", temperature=0.7)
    huge = {**good, "params": {"weight[whole]": 1e300, "weight[lora]": 1e300}}
    refused(422, "not finite", recipe=huge, requests=[item])
    for raw in (b"{", b"[" * 5000, b'{"recipe": NaN}', b"\xff\xfe", b""):
        answer = ask(served, "POST", path, content=raw, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, raw[:10]
    # What a page could make a browser send: a form, another site's script, a name that leads here.
    assert ask(served, "POST", path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert ask(served, "GET", "/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert ask(served, "GET", "/v1/models", headers={"Host": "evil.example"}).status_code == 403

    def trickle() -> Any:
        for _ in range(30):
            yield b" " * 1000

    answer = ask(served, "POST", path, content=trickle(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    # After all of that it answers, and with the right merge.
    body = {"recipe": good, "requests": [item]}
    first, second = (ask(served, "POST", path, json=body).json() for _ in range(2))
    assert first == second and first["answers"][0]["logprob"] < 0
    overflowing = backend(served.url).apply(Recipe("task_arithmetic", {"whole": "w"}, {"weight[whole]": 1e300}, "x"))
    with overflowing as model, pytest.raises(EvaluationError, match="not finite"):
        model.loglikelihood(SCORED[:1])


def test_the_openapi_document_describes_every_route(served: Any):
    """Authors of other clients would have to guess."""
    document = ask(served, "GET", "/openapi.json").json()
    operations = {(path, method) for path, entry in document["paths"].items() for method in entry}
    session = "/v1/sessions/{session_id}"
    assert operations == {
        ("/health", "get"), ("/metrics", "get"), ("/v1/sessions", "post"), (session, "get"), (session, "delete"),
        (f"{session}/merge", "put"), (f"{session}/loglikelihood", "post"), (f"{session}/generate", "post"),
        ("/v1/models", "get"), ("/v1/completions", "post"),
    }  # fmt: skip
    schemas = document["components"]["schemas"]
    assert set(schemas["RecipeBody"]["required"]) == {"method", "models", "params"}


CANNOT_BE_RIGHT: tuple[tuple[dict[str, Any], str], ...] = (
    ({"host": "0.0.0.0"}, "needs a token; declare clients"),
    ({"clients": CLIENTS}, "ALICE_TOKEN"),
    ({"clients": {"alice": {}}}, "token_env or token_file"),
    ({"clients": {"alice": {"token_file": "gone.token"}}}, "gone.token"),
    ({"modles": {}}, "modles"),
    ({"base_model": "nowhere"}, "nowhere"),
    ({"limits": {"items": 0}}, "limits.items"),
    ({"state": "no/folder.db"}, "folder"),
)


def test_a_service_that_cannot_be_right_does_not_start(pool_file: Callable[..., Path]):
    """A provider would serve something else than intended, or everybody."""
    program = """
import sys
from mergefront.cli.application import cli
for number, path in enumerate(sys.argv[1:]):
    code = cli.main(["serve", path], standalone_mode=False)
    print(f"\\nfile {number} ended with {code}", file=sys.stderr, flush=True)
"""
    folder = pool_file().parent
    files = [pool_file(**keys).rename(folder / f"{place}.yaml") for place, (keys, _) in enumerate(CANNOT_BE_RIGHT)]
    environment = {key: value for key, value in os.environ.items() if key not in TOKENS}
    command = [sys.executable, "-c", program, *map(str, files)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    said = result.stderr.split(" ended with 2\n")
    assert len(said) == len(files) + 1 and said[-1] == "", result.stderr
    for number, (_, words) in enumerate(CANNOT_BE_RIGHT):
        assert words in said[number] and said[number].endswith(f"file {number}"), result.stderr
    assert "Traceback" not in result.stderr
