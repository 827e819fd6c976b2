"""Ask and tell over HTTP: any client drives a study, twice told is told once, strangers get nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
import httpx
import uvicorn

import mergefront as mf
from mergefront.optimizer.errors import UserError
from mergefront.serving.process import bound_socket
from mergefront.serving.study_server import StudyServer, make_application, serve_studies
from mergefront.serving.tokens import checked_token
from mergefront.storage.database import Database

TOKEN = "correct-horse-battery-staple"


class Running:
    """A study server in this process."""

    def __init__(self, url: str, token: str | None) -> None:
        self.database = Database(url)
        application = make_application(StudyServer(self.database, token), loopback_only=True)
        self.server = uvicorn.Server(uvicorn.Config(application, log_config=None, ws="none", lifespan="off"))
        self.socket = bound_socket("127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.socket.getsockname()[1]}", headers=headers, timeout=30
        )

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()
        self.database.close()


def new_study(url: str, evaluations: int, name: str = "remote") -> mf.Study:
    """A study with one evaluation done."""
    study = mf.search(
        space=mf.MergeSpace(["maths", "french"], method="ties"),
        evaluate=lambda recipe: {"maths": recipe.params["weight[maths]"], "french": 0.5},
        objectives=["maths", "french"],
        sampler="random",
        evaluations=1,
        storage=url,
        name=name,
    )
    from mergefront.storage.studies import update

    update(study.database, study.record, evaluations=evaluations)
    return study


@pytest.fixture
def running(database_url: str) -> Iterator[Running]:
    new_study(database_url, 12)
    server = Running(database_url, TOKEN)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def standing(module_database_url: str) -> Iterator[Running]:
    """One for all requests that have to change nothing."""
    new_study(module_database_url, 12)
    server = Running(module_database_url, TOKEN)
    yield server
    answer = server.client.get("/v1/studies/remote").json()
    server.stop()
    assert answer["done"] == 1, "a request that was refused spent an evaluation"


def post(running: Running, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    return running.client.post(f"/v1/studies/remote/{path}", json=body, **options)


@pytest.mark.cases(1)
def test_a_client_spends_the_budget_and_never_more(running: Running) -> None:
    def work(_: int) -> list[int]:
        mine = []
        while (asked := post(running, "ask", {})).status_code == 200:
            trial = asked.json()
            recipe = mf.Recipe.from_mergekit(trial["mergekit"])
            assert dict(recipe.params) == trial["params"]
            told = post(
                running,
                f"trials/{trial['trial']}/tell",
                {"scores": {"maths": recipe.params["weight[maths]"], "french": 0.5}},
            )
            assert told.status_code == 204
            mine.append(trial["trial"])
        return mine

    with ThreadPoolExecutor(4) as pool:
        trials = [number for mine in pool.map(work, range(4)) for number in mine]
    # Recipes that were known already are told by the server itself.
    assert len(trials) == len(set(trials)) <= 11
    assert running.client.get("/v1/studies/remote").json()["done"] == 12
    assert running.client.get("/v1/studies/remote/front").json()["evaluations"] == 12
    assert 'mergefront_study_finished{study="remote"} 12' in running.client.get("/metrics").text.splitlines()


def test_telling_twice_is_telling_once_and_another_story_is_refused(running: Running) -> None:
    trial = post(running, "ask", {}).json()["trial"]
    scores = {"scores": {"maths": 0.25, "french": 0.5}, "standard_errors": {"maths": 0.1}}
    assert [post(running, f"trials/{trial}/tell", scores).status_code for _ in range(3)] == [204, 204, 204]
    other = post(running, f"trials/{trial}/tell", {"scores": {"maths": 0.75, "french": 0.5}})
    assert other.status_code == 409
    assert post(running, f"trials/{trial}/fail", {"reason": "x"}).status_code == 409
    failed = post(running, "ask", {}).json()["trial"]
    assert [post(running, f"trials/{failed}/fail", {"reason": "no disk"}).status_code for _ in range(2)] == [204, 204]
    study = mf.load_study("remote", storage=running.database.url)
    assert [failure.reason for failure in study.failures()] == ["reported: no disk"]
    assert study.optuna.get_trials()[trial].values == [0.25, 0.5]


def test_a_lease_that_ends_hands_the_trial_out_again(running: Running) -> None:
    first = post(running, "ask", {"lease": 0.001}).json()
    second = post(running, "ask", {}).json()
    assert first == second
    third = post(running, "ask", {}).json()
    assert third["trial"] != second["trial"]


@pytest.mark.cases(7)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong-horse-battery-staple", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN]
)
def test_nobody_without_the_token_sees_anything(standing: Running, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    with httpx.Client(base_url=standing.client.base_url) as stranger:
        for path in ("/v1/studies", "/v1/studies/remote", "/v1/studies/remote/front", "/v1/studies/none", "/metrics"):
            answer = stranger.get(path, headers=headers)
            assert answer.status_code == 401 and "remote" not in answer.text
        assert stranger.post("/v1/studies/remote/ask", json={}, headers=headers).status_code == 401
        assert stranger.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("ask", {"lease": 0}, 422),
        ("ask", {"lease": -1}, 422),
        ("ask", {"lease": "1"}, 422),
        ("ask", {"lease": 1e300}, 422),
        ("ask", {"least": 5}, 422),
        ("ask", [], 422),
        ("trials/99/tell", {"scores": {"maths": 1, "french": 1}}, 404),
        ("trials/-1/tell", {"scores": {"maths": 1, "french": 1}}, 422),
        ("trials/99999999999999999999/tell", {"scores": {"maths": 1}}, 422),
        ("trials/x/tell", {"scores": {"maths": 1}}, 422),
        ("trials/1/tell", {"scores": {}}, 422),
        ("trials/1/tell", {"scores": {"maths": "1"}}, 422),
        ("trials/1/tell", {"scores": {"maths": 1, "french": 1}, "standard_errors": {"maths": -1}}, 422),
        ("trials/1/fail", {"reason": ""}, 422),
        ("trials/1/fail", {"reason": "x" * 10_001}, 422),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(standing: Running, path: str, body: Any, status: int) -> None:
    answer = post(standing, path, body)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_scores_must_be_the_studys(running: Running) -> None:
    trial = post(running, "ask", {}).json()["trial"]
    missing = post(running, f"trials/{trial}/tell", {"scores": {"maths": 1.0}})
    unknown = post(running, f"trials/{trial}/tell", {"scores": {"maths": 1.0, "french": 1.0, "german": 1.0}})
    assert (missing.status_code, unknown.status_code) == (422, 422)
    assert "french" in missing.json()["detail"] and "german" in unknown.json()["detail"]
    good = post(running, f"trials/{trial}/tell", {"scores": {"french": 1.0}, "items": {"maths": {"a": 1, "b": 0}}})
    assert good.status_code == 204, "a refused tell leaves the trial open"


def test_a_studys_name_does_not_decide_the_status(running: Running) -> None:
    new_study(running.database.url, 12, "already-tuned")
    path = "/v1/studies/already-tuned"
    trial = running.client.post(f"{path}/ask", json={}).json()["trial"]
    tell = f"{path}/trials/{trial}/tell"
    wrong = [{"maths": 1.0}, {"maths": 1.0, "french": 1.0, "german": 1.0}]
    assert [running.client.post(tell, json={"scores": scores}).status_code for scores in wrong] == [422, 422]
    assert running.client.post(tell, json={"scores": {"maths": 1.0, "french": 1.0}}).status_code == 204
    assert running.client.post(tell, json={"scores": {"maths": 0.5, "french": 1.0}}).status_code == 409
    assert running.client.post(f"{path}/trials/99/tell", json={"scores": {"maths": 1.0}}).status_code == 404


def test_large_odd_and_foreign_requests_are_refused_unread(running: Running) -> None:
    client = running.client
    path = "/v1/studies/remote/ask"
    assert client.post(path, content=b" " * 300_000, headers={"Content-Type": "application/json"}).status_code == 413
    assert client.post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post(path, json={}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post(path, json={}, headers={"Host": "evil.example"}).status_code == 403
    deep = b"[" * 100_000
    assert client.post(path, content=deep, headers={"Content-Type": "application/json"}).status_code in (400, 422)


@pytest.mark.parametrize("name", ["'; DROP TABLE trials; --", "%00", "../../etc/passwd", "x" * 201, "%", "_"])
def test_names_are_data(standing: Running, name: str) -> None:
    from urllib.parse import quote

    answer = standing.client.get(f"/v1/studies/{quote(name, safe='%')}")
    assert answer.status_code in (404, 422)
    assert [study["name"] for study in standing.client.get("/v1/studies").json()] == ["remote"]


def test_other_machines_are_served_with_a_token_only(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/x.db")
    with pytest.raises(UserError, match="needs a token"):
        serve_studies(database, "0.0.0.0", 0, None, print)
    for token in ("short", "with spaces in it here", "ünïcode-token-longer-than-16", "x" * 15):
        with pytest.raises(UserError, match="no usable token"):
            checked_token(token, "token.txt")
    assert checked_token(f"{TOKEN}\n", "token.txt") == TOKEN
