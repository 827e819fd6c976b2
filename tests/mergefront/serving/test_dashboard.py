"""The dashboard explains a study, in a real browser too, and can neither change nor leak one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.simple_server import WSGIServer, make_server

import httpx
import numpy as np
import pytest
import yaml
from small_study import small_study

import mergefront as mf
from mergefront.formatting import score
from mergefront.optimizer.scores.evaluation import Evaluation, EvaluationRequest, ItemScores
from mergefront.storage.database import Database

pytest.importorskip("optuna_dashboard", reason="needs the extra 'dashboard'")

from mergefront.results.dashboard_view import explanations
from mergefront.serving.dashboard import _QuietHandler, _Server, dashboard_application


@pytest.fixture
def address(storage: str) -> Iterator[str]:
    """The dashboard on the studies "one", "skills" and "three", served as the command serves it."""
    database = mf.load_study("skills", storage=storage).database
    server: WSGIServer = make_server(
        "127.0.0.1", 0, dashboard_application(database), server_class=_Server, handler_class=_QuietHandler
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def study_id(storage: str, name: str) -> int:
    return mf.load_study(name, storage=storage).record.study_id


def test_plots_notes_and_recipes_are_there_without_a_write(address: str, storage: str) -> None:
    study = mf.load_study("three", storage=storage)
    before = study.database.optuna_storage.get_study_system_attrs(study.record.study_id)
    shown = httpx.get(f"{address}/api/studies/{study.record.study_id}", timeout=30).json()
    assert {plot["id"] for plot in shown["plotly_graph_objects"]} == {"front-1", "front-2", "hypervolume"}
    assert f"{study.finished_count()} of {study.record.evaluations} evaluations" in shown["note"]["body"]
    for candidate in study.candidates():
        trial = shown["trials"][candidate.number]
        (recipe,) = trial["artifacts"]
        path = f"/artifacts/{study.record.study_id}/{trial['trial_id']}/{recipe['artifact_id']}"
        text = httpx.get(address + path, timeout=30).text
        assert mf.Recipe.from_mergekit(yaml.safe_load(text)).params == candidate.recipe.params
        assert text.splitlines()[-1] in trial["note"]["body"]
    assert study.database.optuna_storage.get_study_system_attrs(study.record.study_id) == before


def test_failed_trials_show_their_reason(address: str, storage: str) -> None:
    study = mf.load_study("skills", storage=storage)
    shown = httpx.get(f"{address}/api/studies/{study.record.study_id}", timeout=30).json()
    failures = study.failures()
    assert failures, "the example has failing trials"
    for failure in failures:
        assert "diverged: loss" in shown["trials"][failure.number]["note"]["body"]


class HalfAnswered:
    """Scores by item, of which a race asks a part."""

    def evaluate(self, recipe: mf.Recipe, request: EvaluationRequest) -> Evaluation:
        ability = 0.2 + 0.6 * float(recipe.params["weight[a]"])
        noise = np.random.default_rng(int(recipe.digest[:6], 16)).normal(0, 0.1, 200)
        right = (ability + noise > np.random.default_rng(0).random(200)).astype(float)
        assert request.race is not None
        race = request.race.start({"score": [str(number) for number in range(200)]}, {})
        while (batch := race.batch()) is not None:
            asked = batch["score"]
            race.tell("score", asked, ItemScores(tuple(map(str, asked)), tuple(right[list(asked)].tolist())))
        result = race.result()
        one = result.estimates["score"]
        return Evaluation(
            {"score": one.mean}, {"score": one.standard_error}, dict(result.items), details=dict(result.details)
        )


def test_a_raced_trials_note_has_its_score_as_it_is_known_now(tmp_path: Path) -> None:
    """The front that a user reads elsewhere would contradict the values that the dashboard shows, unexplained."""
    study = mf.search(
        space=mf.MergeSpace(["a", "b"], method="task_arithmetic", parameters={"weight": [0, 1]}),
        evaluate=HalfAnswered(),
        objectives=["score"],
        sampler="random",
        evaluations=14,
        racing=True,
        storage=f"sqlite:///{tmp_path}/raced.db",
        name="raced",
    )
    trials = study.optuna.get_trials(deepcopy=False)
    shown = explanations(study, trials, study.ledger.recipes())
    assert "This study is raced" in shown["dashboard:note_str:0"]
    candidates = study.candidates()
    assert any(abs(one.scores["score"] - trials[one.number].values[0]) > 0.001 for one in candidates)
    for candidate in candidates:
        note = shown[f"dashboard:{trials[candidate.number]._trial_id}:note_str:0"]
        assert f"by now: score {score(candidate.scores['score'], candidate.standard_errors.get('score'))}" in note


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/studies/1"),
        ("POST", "/api/studies/1/rename"),
        ("POST", "/api/studies"),
        ("POST", "/api/trials/1/tell"),
        ("POST", "/api/artifacts/1/1"),
        ("DELETE", "/api/artifacts/1/1/0ec1be-1"),
        ("PUT", "/api/studies/1/note/../../1"),
    ],
)
def test_it_changes_no_study(address: str, storage: str, method: str, path: str) -> None:
    answer = httpx.request(method, address + path, json={"study_name": "x", "state": "Complete", "values": [1]})
    assert answer.status_code in (403, 404)
    assert mf.load_study("one", storage=storage).finished_count() == 24


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Host": "127.0.0.1.evil.example:80"}]
)
def test_other_sites_get_nothing(address: str, headers: dict[str, str]) -> None:
    assert httpx.get(f"{address}/api/studies", headers=headers).status_code == 403


def test_unknown_recipes_are_not_found(address: str, storage: str) -> None:
    number = study_id(storage, "one")
    for artifact in ("0ec1be-999999", "0ec1be-", "abc", "0ec1be-1-2", "..%2f..%2fetc"):
        answer = httpx.get(f"{address}/artifacts/{number}/1/{artifact}")
        assert answer.status_code == 404, artifact


def test_a_users_note_takes_the_place_of_ours(tmp_path: Path, address: str, storage: str) -> None:
    number = study_id(storage, "one")
    changed = httpx.put(f"{address}/api/studies/{number}/note", json={"version": 2, "body": "ours to keep"})
    assert changed.status_code == 204
    assert httpx.get(f"{address}/api/studies/{number}", timeout=30).json()["note"]["body"] == "ours to keep"


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/studies/1", "/dashboard/"])
def test_its_pages_say_that_they_change_nothing(address: str, path: str) -> None:
    """Who clicks Delete and is refused without a word clicks again, or believes that it is done."""
    page = httpx.get(address + path, headers={"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"})
    assert page.status_code == 200 and "Read only, except notes" in page.text
    assert "last-modified" not in page.headers, "a browser would keep a page that is made of two"


@pytest.mark.long
def test_a_browser_draws_our_plots(address: str, storage: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no browser (apt-get install chromium)")
    number = study_id(storage, "skills")

    def page(path: str) -> str:
        command = [browser, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox"]
        command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom"]
        done = subprocess.run([*command, address + path], capture_output=True, text=True, timeout=120, env=os.environ)
        return done.stdout

    # What the style sheet hides is there under the names that it hides.
    listed = page("/dashboard")
    for hidden in ('aria-label="rename study"', 'aria-label="delete study"', 'data-testid="AddBoxIcon"'):
        assert hidden in listed and hidden in httpx.get(f"{address}/dashboard").text
    assert "Read only, except notes" in listed
    shown = page(f"/dashboard/studies/{number}")
    assert "The front of skills with its anchors</text>" in shown
    assert "Hypervolume of skills over its trials</text>" in shown
    assert "expert maths" in shown
    failed = mf.load_study("skills", storage=storage).failures()[0]
    trial = page(f"/dashboard/studies/{number}/trials?numbers={failed.number}")
    assert "diverged: loss [inf]" in trial
    assert f"trial-{failed.number}.yaml" in trial
    assert json.dumps("merge_method")[1:-1] in trial


def test_a_page_that_was_looked_at_before_shows_what_is_new(tmp_path: Path) -> None:
    """It is remembered while nothing changes, and optuna-dashboard itself keeps trials for seconds."""
    url = f"sqlite:///{tmp_path}/study.db"
    study = small_study(url)
    path = f"/api/studies/{study.record.study_id}?after=0"
    application = dashboard_application(Database(url, create=False))
    with httpx.Client(transport=httpx.WSGITransport(application), base_url="http://127.0.0.1") as client:
        first, again = client.get(path), client.get(path)
        assert first.content == again.content and len(first.json()["trials"]) == 6
        small_study(url, evaluations=8)
        later = client.get(path).json()
        assert [trial["state"] for trial in later["trials"]] == ["Complete"] * 8
        note = later["note"]
        changed = {"body": "mine", "version": note["version"] + 1}
        assert client.put(path.partition("?")[0] + "/note", json=changed).status_code == 204
        assert client.get(path).json()["note"]["body"] == "mine"
        assert client.get(f"/api/studies/{study.record.study_id + 1}").status_code == 404
