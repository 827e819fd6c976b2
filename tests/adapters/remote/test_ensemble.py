"""Closed models behind OpenAI-compatible endpoints: asked once each, honest about what they cannot do."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mergefront as mf
from mergefront.adapters.evaluator import TaskEvaluator
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Generation, GenerationRequest, LogLikelihood, ScoringRequest
from mergefront.adapters.remote.backend_types import make_backend, read_settings, try_backend
from mergefront.adapters.remote.ensemble.backend import EnsembleModel
from mergefront.adapters.remote.openai.backend import OpenAIBackend
from mergefront.adapters.remote.settings import OpenAISection, joined_settings, split_settings
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.adapters.tasks.prompt_findings import Reader
from mergefront.cli.application import cli
from mergefront.optimizer.errors import UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.storage.database import Database
from mergefront.storage.responses import DatabaseResponses

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, as_json, serve

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima", "Cuba": "Havana"}
KNOWS = {"west": ("France", "Italy", "Spain"), "east": ("Japan", "Peru"), "liar": ()}


def chat(request: Received) -> Answer:
    """Three closed models: two that know some capitals, one that is always wrong."""
    body = request.json
    country = body["messages"][-1]["content"].split()[-1]
    answer = f" {CAPITALS[country].upper()}." if country in KNOWS[body["model"]] else f"City of {body['model']}"
    if body["model"] == "east" and country == "Cuba":
        answer = "havana"
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    return as_json({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}], "usage": usage})


def echo(request: Received) -> Answer:
    """A completions endpoint with echo: a word is one token of log-probability minus its length."""
    body = request.json
    words = body["prompt"].replace(" ", "\0 ").split("\0")
    offsets = [sum(map(len, words[:place])) for place in range(len(words))]
    values = [None, *(-float(len(word)) for word in words[1:])]
    logprobs = {"tokens": words, "token_logprobs": values, "text_offset": offsets, "top_logprobs": None}
    return as_json({"choices": [{"text": body["prompt"] + " x", "logprobs": logprobs, "finish_reason": "length"}]})


def ensemble(url: str, **more: Any) -> Any:
    members = {name: {"url": url, "model": name, "longest_wait": 0.05, **more} for name in KNOWS}
    return read_settings({"type": "ensemble", "members": members})


def items(folder: Path) -> JsonlTask:
    lines = [
        f'{{"prompt": "Capital of {k}", "answer": ["{v}", "{v.upper()}.", "{v.lower()}"]}}' for k, v in CAPITALS.items()
    ]
    (folder / "items.jsonl").write_text("\n".join(lines))
    return JsonlTask.read("capitals", "items.jsonl", "exact_match", folder=folder, report_fraction=0)


def test_a_whole_search_asks_each_model_each_item_once(tmp_path: Path):
    space = MergeSpace(list(KNOWS), method="task_arithmetic", parameters={"weight": [0, 1]})
    database = Database(f"sqlite:///{tmp_path / 'cache.db'}")
    with serve(chat) as server:
        backend = make_backend(ensemble(server.url), space, ModelPlaces(tmp_path), DatabaseResponses(database))
        study = mf.search(
            space=space, evaluate=TaskEvaluator(backend, [items(tmp_path)]), objectives=["capitals"], sampler="sobol",
            evaluations=24, storage=f"sqlite:///{tmp_path / 'study.db'}", name="closed",
        )  # fmt: skip
        backend.close()
        assert sum(b"Capital of" in request.body for request in server.received) == len(CAPITALS) * len(KNOWS)
        # A second process finds everything in the database.
        again = make_backend(ensemble(server.url), space, ModelPlaces(tmp_path), DatabaseResponses(database))
        with again.apply(study.best("capitals").recipe) as model:
            model.generate([GenerationRequest("Capital of France", 32, ("\n",))])
        again.close()
        assert sum(b"Capital of" in request.body for request in server.received) == len(CAPITALS) * len(KNOWS)
    scores = {anchor.anchor: anchor.scores["capitals"] for anchor in study.anchors()}
    assert scores["base"] == 0.0 and scores["expert west"] == 0.5 and scores["expert liar"] == 0.0
    assert study.best("capitals").scores["capitals"] >= 0.5
    database.close()


@pytest.mark.long
def test_chat_models_of_a_real_server_are_paid_once_and_status_says_what(tmp_path: Path, url: str):
    """llama.cpp's chat route, whose LoRAs are the members; weights are searched at no further cost."""
    member = {"url": f"{url}/v1", "model": "tiny", "mode": "chat", "system": "Be brief.", "price": {"request": 0.5}}
    members = {
        name: {**member, "budget": {"money": 50}, "request": {"lora": [{"id": place, "scale": 1.0}]}}
        for place, name in enumerate(("plain", "patterned"))
    }
    content = {
        "study": "closed",
        "merge": {
            "method": "task_arithmetic",
            "base_model": "none",
            "models": list(members),
            "space": {"weight": [0, 1]},
        },
        "backend": {"type": "ensemble", "members": members},
        "tasks": {
            "words": {"type": "jsonl", "path": "items.jsonl", "metric": "f1", "max_new_tokens": 6, "report_fraction": 0}
        },
        "objectives": ["words"],
        "search": {"sampler": "random", "evaluations": 9},
    }
    lines = [json.dumps({"prompt": f"Say {word}", "answer": word}) for word in ("yes", "no", "two")]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    (tmp_path / "study.yaml").write_text(json.dumps(content))
    study = mf.run(tmp_path / "study.yaml", progress=False)
    paid = [one.evaluation.cost["money"] for one in study.candidates()]
    assert len(paid) == 9 and paid[0] >= 0.5 * 2 * 3 and not any(paid[1:])
    said = CliRunner().invoke(cli, ["status", "closed", "--storage", study.database.url])
    assert f"{paid[0]:,.4g} money" in said.output
    assert "members.plain: at most 50 money, request at 0.5" in said.output


def test_log_probabilities_by_echo_split_at_the_seam():
    with serve(echo) as server:
        backend = OpenAIBackend(
            OpenAISection(type="openai", url=server.url), MergeSpace({"a": "model-a"}), ModelPlaces(Path())
        )
        recipe = Recipe("task_arithmetic", {"a": "a"}, {"weight[a]": 1.0}, "base")
        with backend.apply(recipe) as model:
            plain, spaced = model.loglikelihood(
                [ScoringRequest("one two", " abc de"), ScoringRequest("one two ", "abc")]
            )
        assert (plain.logprob, plain.tokens) == (-7.0, 2)
        assert (spaced.logprob, spaced.tokens) == (-4.0, 1)
        with pytest.raises(UserError, match="ensemble"):
            backend.apply(recipe.with_params(**{"weight[a]": 0.5}))
        backend.close()


def test_an_endpoint_without_log_probabilities_is_found_out_before_the_search(tmp_path: Path):
    space = MergeSpace(list(KNOWS), method="task_arithmetic", parameters={"weight": [0, 1]})

    def chat_capital(request: Received) -> Answer:
        return as_json({"choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}]})

    with serve(chat_capital) as server:
        problems = try_backend(ensemble(server.url), space, ModelPlaces(tmp_path), ["loglikelihood"]).problems
        assert len(problems) == len(KNOWS) and "exact_match" in problems[0]
        read: list[Reader] = []
        assert try_backend(ensemble(server.url), space, ModelPlaces(tmp_path), ["generate"], read.append).problems == []
        assert [reader.is_chat for reader in read] == [True]
        completions = ensemble(server.url, mode="completions")
        assert try_backend(completions, space, ModelPlaces(tmp_path), ["loglikelihood"]).problems


@pytest.mark.parametrize("method", ["ties", ["task_arithmetic", "ties"]])
def test_a_method_that_the_backend_cannot_do_is_found_out_before_the_search(tmp_path: Path, method: str | list[str]):
    """Anchors are sums that every backend does, so that a search would end after them."""
    space = MergeSpace(list(KNOWS), method=method, base_model="base", parameters={"weight": [0, 1]})

    def capital(request: Received) -> Answer:
        return as_json({"choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}]})

    with serve(capital) as server:
        (problem,) = try_backend(ensemble(server.url), space, ModelPlaces(tmp_path), ["generate"]).problems
        endpoint = OpenAISection(type="openai", url=server.url, mode="chat")
        (nothing_merged,) = try_backend(endpoint, space, ModelPlaces(tmp_path), ["generate"]).problems
    assert problem.startswith("an ensemble needs one weight for each model: ties cannot be done")
    assert "cannot merge" in nothing_merged


def test_members_and_models_must_be_the_same(tmp_path: Path):
    space = MergeSpace(["west", "esat"], method="task_arithmetic", parameters={"weight": [0, 1]})
    with pytest.raises(UserError) as raised:
        make_backend(ensemble("http://127.0.0.1:1"), space, ModelPlaces(tmp_path))
    assert "'liar' is no model" in str(raised.value) and "'esat' is missing" in str(raised.value)


def test_address_and_key_are_no_part_of_what_a_study_measures():
    settings = ensemble("http://127.0.0.1:1", api_key_env="SOME_KEY")
    definition, runtime = split_settings(settings)
    assert "url" not in str(definition) and "SOME_KEY" not in str(definition)
    assert read_settings(joined_settings(definition, runtime)) == settings


def test_a_model_that_ends_inside_its_thoughts_does_not_vote() -> None:
    class Says:
        def __init__(self, said: Generation) -> None:
            self.said = said

        def generate(self, requests: Any) -> list[Generation]:
            return [self.said for _ in requests]

        def loglikelihood(self, requests: Any) -> Any: ...

    thinks, knows = Says(Generation("", 9, "length", is_thought=True)), Says(Generation("Paris", 2, "stop"))
    asked = [GenerationRequest("France")]
    (voted,) = EnsembleModel({"a": thinks, "b": thinks, "c": knows}, {"a": 1.0, "b": 1.0, "c": 0.5}).generate(asked)
    assert voted.text == "Paris" and not voted.is_thought
    (voted,) = EnsembleModel({"a": thinks, "b": thinks}, {"a": 1.0, "b": 1.0}).generate(asked)
    assert voted.text == "" and voted.is_thought


class Knows:
    """Finds prompts that name its subject likely, and answers all with its own name."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.scored: list[ScoringRequest] = []

    def loglikelihood(self, requests: Sequence[ScoringRequest]) -> list[LogLikelihood]:
        self.scored += requests
        return [LogLikelihood(-1.0 if self.subject in one.continuation else -3.0, 2, None) for one in requests]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        return [Generation(self.subject, 1, "stop") for _ in requests]


def test_each_prompt_goes_to_the_members_that_find_it_likeliest() -> None:
    members = {name: Knows(name) for name in ("maths", "french", "law")}
    weights = {"maths": 0.5, "french": 0.3, "law": 0.2}
    asked = [GenerationRequest(text) for text in ("About french verbs", "About law", "French", "About maths or law")]
    assert [one.text for one in EnsembleModel(members, weights).generate(asked)] == ["maths"] * 4
    # A prompt of one word says nothing of itself, so that the weights decide.
    routed = EnsembleModel(members, weights, route_to=1)
    assert [one.text for one in routed.generate(asked)] == ["french", "law", "maths", "maths"]
    assert ScoringRequest("About ", "law") in members["law"].scored
    # By Bayes: of the two likeliest, weighed by prior times likelihood.
    pair = EnsembleModel(members, weights, route_to=2).loglikelihood([ScoringRequest("About french verbs", " x")])
    first, second = 0.3 * math.exp(-1), 0.5 * math.exp(-3)
    assert pair[0].logprob == pytest.approx(-3.0)
    choices = [ScoringRequest("About french verbs", " maths"), ScoringRequest("About french verbs", " french")]
    shares = {"french": first / (first + second), "maths": second / (first + second)}
    likely = 1 / (1 + math.exp(-2))
    expected = [
        shares["maths"] * likely + shares["french"] * (1 - likely),
        shares["french"] * likely + shares["maths"] * (1 - likely),
    ]
    found = EnsembleModel(members, weights, route_to=2).loglikelihood(choices)
    assert [math.exp(one.logprob) for one in found] == pytest.approx(expected)


def test_routing_needs_members_that_tell_how_likely_a_prompt_is(tmp_path: Path) -> None:
    space = MergeSpace(list(KNOWS), method="task_arithmetic", parameters={"weight": [0, 1]})
    with serve(chat) as server:
        settings = ensemble(server.url).model_copy(update={"route_to": 2})
        problems = try_backend(settings, space, ModelPlaces(tmp_path), ["generate"]).problems
        assert len(problems) == len(KNOWS)
        settings = settings.model_copy(update={"route_to": 4})
        assert try_backend(settings, space, ModelPlaces(tmp_path), ["generate"]).problems == [
            "route_to is 4; there are 3 members"
        ]
