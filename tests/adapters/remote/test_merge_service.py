"""Clients of merge services: our own protocol, and the released Evo-Merging service's as it was recorded."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import GenerationRequest, ScoringRequest
from mergefront.adapters.remote.backend_types import connected_evaluator, make_backend, read_settings, try_backend
from mergefront.adapters.remote.http.cache import MemoryCache
from mergefront.adapters.remote.merge_service import QUERY_DEFAULTS
from mergefront.cli.application import cli
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.evaluation import EvaluationRequest

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, as_json, serve

SPACE = MergeSpace({"a": "/home/me/secret/a", "b": "b"}, method="task_arithmetic", parameters={"weight": [-1.5, 1.5]})
RECIPE = SPACE.recipe({"weight[a]": 0.5, "weight[b]": -1.0})


def evo_service(request: Received) -> Answer:
    """What the released code answers (shapes as recorded from it); its loss is made up of what was sent."""
    if request.path == "/v1/sessions":
        body = request.json
        session = {"session_id": "5f3c", "preset_id": body["preset_id"], "workdir": "artifacts/5f3c"}
        return as_json({**session, "model_name_or_path": None, "query_plus": body["query_plus"], "adapter_count": 2})
    body = request.json
    if len(body["alpha"]) != 2:
        return Answer(500, b"Internal Server Error", {"Content-Type": "text/plain"})
    loss = sum(body["beta"]) ** 2 + sum(body["alpha"])
    return as_json({"loss": loss, "adapter_dir": f"artifacts/5f3c/artifacts/{body['tag']}"})


def evo_settings(url: str, **more: Any) -> Any:
    content = {"type": "merge_service", "url": url, "pool": "glue", "protocol": "evo-merging", "longest_wait": 0.05}
    return read_settings({**content, "query": {"dataset": "conll04", "template": "llama3"}, **more})


def test_control_vectors_go_out_and_a_loss_comes_back(tmp_path: Path):
    with (
        serve(evo_service) as server,
        connected_evaluator(evo_settings(server.url), (), SPACE, ModelPlaces(tmp_path)) as evaluator,
    ):
        evaluation = evaluator.evaluate(RECIPE, EvaluationRequest(("loss",)))
        assert evaluation.scores["loss"] == pytest.approx(0.25 + 2.0)
        opened, evaluated = (request.json for request in server.received)
        # The service resets every field that is not sent.
        assert opened["query_plus"] == {**QUERY_DEFAULTS, "dataset": "conll04", "template": "llama3"}
        assert (evaluated["alpha"], evaluated["beta"]) == ([1.0, 1.0], [0.5, -1.0])
        dare = Recipe("dare_linear", {"a": "a", "b": "b"}, {"weight[a]": 1, "weight[b]": 1, "density[b]": 0.25}, "x")
        evaluator.evaluate(dare, EvaluationRequest(("loss",)))
        assert server.received[-1].json["alpha"] == [1.0, 0.25]
        with pytest.raises(UserError, match="loss"):
            evaluator.evaluate(RECIPE, EvaluationRequest(("maths",)))


def test_a_pool_of_another_size_and_a_loss_that_is_none_are_told(tmp_path: Path):
    three = MergeSpace(["a", "b", "c"], method="task_arithmetic", parameters={"weight": [0, 1]})
    with serve(evo_service) as server:
        assert "2 LoRAs" in try_backend(evo_settings(server.url), three, ModelPlaces(tmp_path), []).problems[0]
        unknown = evo_settings(server.url, query={"dataset": "x", "batchsize": 3})
        assert "batch_size" in try_backend(unknown, SPACE, ModelPlaces(tmp_path), []).problems[0]

    def diverged(request: Received) -> Answer:
        return evo_service(request) if request.path == "/v1/sessions" else Answer(500, b"Internal Server Error")

    with (
        serve(diverged) as server,
        connected_evaluator(evo_settings(server.url), (), SPACE, ModelPlaces(tmp_path)) as evaluator,
    ):
        with pytest.raises(EvaluationError) as raised:
            evaluator.evaluate(RECIPE, EvaluationRequest(("loss",)))
        assert raised.value.kind == "http 500" and len(server.received) == 1 + 3


def own_service(request: Received) -> Answer:
    body = request.json
    if request.path == "/v1/sessions":
        return as_json({"session_id": f"s{id(request)}", "models": ["a", "b"], "pool_digest": "d1"})
    if request.path.endswith("loglikelihood"):
        moved = sum(value for name, value in body["recipe"]["params"].items() if name.startswith("weight")) + 0.5
        answers = [
            {"logprob": -len(one["continuation"]) - 0.5 * moved, "tokens": 1, "is_greedy": False}
            for one in body["requests"]
        ]
    else:
        answers = [{"text": one["prompt"].upper(), "tokens": 2, "finish": "stop"} for one in body["requests"]]
    return as_json({"answers": answers})


def test_recipes_are_asked_of_our_own_service_once_whatever_the_session(tmp_path: Path):
    settings = read_settings
    cache = MemoryCache()
    with serve(own_service) as server:
        for _ in range(2):
            content = {"type": "merge_service", "url": server.url, "pool": "pool"}
            backend = make_backend(settings(content), SPACE, ModelPlaces(tmp_path), cache)
            with backend.apply(RECIPE) as model:
                scored = model.loglikelihood([ScoringRequest("x", "y" * n) for n in range(1, 41)])
                assert [one.logprob for one in scored] == [-float(n) for n in range(1, 41)]
                assert model.generate([GenerationRequest("abc")])[0].text == "ABC"
            backend.close()
        paths = [request.path for request in server.received]
        assert len([path for path in paths if path == "/v1/sessions"]) == 2
        assert len(paths) == 2 + 2 + 1
        assert all(b"secret" not in request.body for request in server.received)


@pytest.mark.parametrize("limit", [{"budget": {"tokens": 9}}, {"budget": {"money": 1.0}, "price": {"input": 1.0}}])
def test_a_limit_of_tokens_that_a_service_does_not_report_is_refused_beforehand(tmp_path: Path, limit: dict[str, Any]):
    """Counted as 0, they would be spent without end."""
    for service, more in ((own_service, {}), (evo_service, {"protocol": "evo-merging", "query": {"dataset": "d"}})):
        with serve(service) as server:
            content = {"type": "merge_service", "url": server.url, "pool": "pool", **more}
            (problem,) = try_backend(read_settings({**content, **limit}), SPACE, ModelPlaces(tmp_path), []).problems
            assert f"budget.{next(iter(limit['budget']))} cannot be kept" in problem and not server.received
            enough = read_settings({**content, "budget": {"requests": 9}})
            assert not try_backend(enough, SPACE, ModelPlaces(tmp_path), []).problems


@pytest.mark.parametrize(
    ("answered", "words"),
    [("base", "as the base model when asked for 'a' alone"), ("the one before", "takes one merge for another")],
)
def test_a_service_that_takes_one_merge_for_another_is_found_by_check(tmp_path: Path, answered: str, words: str):
    recipes: list[Any] = []

    def muddled(request: Received) -> Answer:
        if not request.path.endswith("loglikelihood"):
            return own_service(request)
        body = request.json
        recipes.append(body["recipe"])
        body["recipe"] = recipes[0 if answered == "base" else max(len(recipes) - 2, 0) if len(recipes) > 3 else -1]
        return own_service(replace(request, body=json.dumps(body).encode()))

    content = {"type": "merge_service", "pool": "pool"}
    with serve(own_service) as server:
        tried = try_backend(
            read_settings({**content, "url": server.url}), SPACE, ModelPlaces(tmp_path), ["loglikelihood"]
        )
        assert not tried.problems and "each expert alone changes the answers (by 0.5 nats" in tried.proved
    with serve(muddled) as server:
        tried = try_backend(
            read_settings({**content, "url": server.url}), SPACE, ModelPlaces(tmp_path), ["loglikelihood"]
        )
    assert words in tried.problems[0] and not tried.proved


def test_a_model_that_the_pool_lacks_is_named(tmp_path: Path):
    other = MergeSpace(["a", "c"], method="task_arithmetic", parameters={"weight": [0, 1]})
    with serve(own_service) as server:
        content = {"type": "merge_service", "url": server.url, "pool": "pool"}
        assert "'c'" in try_backend(read_settings(content), other, ModelPlaces(tmp_path), ["generate"]).problems[0]


def test_a_study_of_the_services_own_loss_has_no_report_items_and_a_page_all_the_same(tmp_path: Path):
    """The loss on the service's own data would stand as one on items that the search never saw."""
    pytest.importorskip("plotly")
    with serve(evo_service) as server:
        backend = {"type": "merge_service", "url": server.url, "pool": "glue", "protocol": "evo-merging"}
        content = {
            "study": "losses",
            "merge": {
                "method": "task_arithmetic",
                "base_model": "x",
                "models": ["a", "b"],
                "space": {"weight": [0, 1]},
            },
            "backend": backend | {"query": {"dataset": "conll04"}},
            "objectives": [{"name": "loss", "direction": "minimize"}],
            "search": {"sampler": "random", "evaluations": 6},
        }
        (tmp_path / "study.yaml").write_text(json.dumps(content))
        mf.run(tmp_path / "study.yaml")
        command = ["report", "losses", "--storage", f"sqlite:///{tmp_path}/mergefront.db"]
        refused = CliRunner().invoke(cli, command)
        assert refused.exit_code == 2 and "the merge service's own loss, which has no report items" in refused.stderr
        written = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "page.html")])
        assert written.exit_code == 0 and (tmp_path / "page.html").is_file(), written.output
