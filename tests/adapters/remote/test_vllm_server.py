"""The vLLM backend against exchanges as a real vLLM 0.32 had them: what is said, written, cleaned up, believed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Chat, GenerationRequest, LogLikelihood, Message, ScoringRequest
from mergefront.adapters.remote.backend_types import make_backend, read_settings, try_backend
from mergefront.adapters.remote.http.cache import MemoryCache
from mergefront.adapters.remote.vllm.backend import ServerChats
from mergefront.optimizer.errors import EvaluationError, UserError
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, as_json, serve

SPACE = MergeSpace({"a": "a", "b": "b"}, method="task_arithmetic", parameters={"weight": [-1.5, 1.5]})
RECIPE = SPACE.recipe({"weight[a]": 0.5, "weight[b]": -1.0})
BASE = "SmolLM2-135M"


class RecordedVllm:
    """Answers in the shapes and words that were recorded; its numbers are made up from what it was sent."""

    def __init__(self) -> None:
        self.loaded: dict[str, Path] = {}
        self.ever: list[str] = []
        self.options: list[Any] = []
        self.seen: dict[str, dict[str, Any]] = {}

    def __call__(self, request: Received) -> Answer:
        if request.path == "/v1/models":
            served = [{"id": BASE, "object": "model", "max_model_len": 64, "parent": None}]
            return as_json({"object": "list", "data": served + [{"id": name, "parent": BASE} for name in self.loaded]})
        body = request.json
        if request.path == "/tokenize" and "messages" in body:
            turns = [f"{one['role'][0]}:{one['content']};" for one in body["messages"]]
            text = "".join(turns) + "a:" if body["add_generation_prompt"] else "".join(turns)[:-1]
            self.options.append(body.get("chat_template_kwargs"))
            return as_json({"count": len(text), "max_model_len": 64, "tokens": [*map(ord, text)], "token_strs": None})
        if request.path == "/tokenize":
            tokens = [ord(character) for character in body["prompt"]]
            return as_json({"count": len(tokens), "max_model_len": 64, "tokens": tokens, "token_strs": None})
        if request.path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], Path(body["lora_path"]))
        if request.path == "/v1/unload_lora_adapter":
            if self.loaded.pop(body["lora_name"], None) is None:
                return error(404, f"The lora adapter '{body['lora_name']}' cannot be found.", "NotFoundError")
            return Answer(200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.".encode())
        return self._complete(body)

    def _load(self, name: str, folder: Path) -> Answer:
        if name in self.loaded:
            return error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        config = folder / "adapter_config.json"
        if not config.is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        self.loaded[name] = folder
        self.ever.append(name)
        self.seen[name] = {"config": json.loads(config.read_text()), "files": sorted(f.name for f in folder.iterdir())}
        return Answer(200, f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _complete(self, body: dict[str, Any]) -> Answer:
        name = body["model"]
        if name != BASE and name not in self.loaded:
            return error(404, f"The model `{name}` does not exist.", "NotFoundError")
        if name != BASE:
            assert self.loaded[name].is_dir(), "a loaded LoRA without its folder ends a real server"
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 1}
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}
        if "logit_bias" in body:
            (token,) = body["logit_bias"]
            rank = 15 if name == BASE else self.seen[name]["config"]["r"]
            value = -0.01 * int(token) - 0.1 * len(body["prompt"]) - 0.1 * (rank - 5)
            top = {f"token_id:{token}": value} if int(token) % 2 else {f"token_id:{token}": value, "token_id:3": -0.01}
            choice["logprobs"] = {"text_offset": [0], "token_logprobs": [value], "tokens": [f"token_id:{token}"],
                                  "top_logprobs": [top]}  # fmt: skip
        return as_json({"object": "text_completion", "model": name, "choices": [choice], "usage": usage})


def error(status: int, message: str, kind: str) -> Answer:
    return as_json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


@pytest.fixture
def loras(tmp_path: Path) -> dict[str, Path]:
    """Two LoRAs of ranks 2 and 3 on one matrix."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    for name, rank in (("a", 2), ("b", 3)):
        folder = tmp_path / name
        folder.mkdir()
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        tensors = {f"{module}.lora_A.weight": random.normal(size=(rank, 8)).astype(np.float32),
                   f"{module}.lora_B.weight": random.normal(size=(6, rank)).astype(np.float32)}  # fmt: skip
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4, "bias": "none"}
        (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    (tmp_path / "served").mkdir()
    return {name: tmp_path / name for name in ("a", "b")}


@contextmanager
def connected(url: str, root: Path, cache: MemoryCache | None = None, **more: Any) -> Iterator[Any]:
    settings = {"type": "vllm", "url": url, "lora_folder": "served", "longest_wait": 0.05, "attempts": 3, **more}
    backend = make_backend(read_settings(settings), SPACE, ModelPlaces(root), cache)
    try:
        yield backend
    finally:
        backend.close()


def test_a_candidate_is_loaded_under_a_new_name_asked_unloaded_and_then_deleted(tmp_path: Path, loras: dict[str, Path]):
    """vLLM answers from an old candidate's cache under an old name, and dies of a deleted folder."""
    vllm = RecordedVllm()
    with serve(vllm) as server, connected(server.url, tmp_path) as backend:
        connecting = len(server.received)
        for _ in range(2):
            with backend.apply(RECIPE) as model:
                assert len(vllm.loaded) == 1
                found = model.loglikelihood([ScoringRequest("ab", "ce")])
                assert found == [LogLikelihood(pytest.approx(-0.99 - 0.2 - 1.01 - 0.3), 2, True)]
                assert not model.loglikelihood([ScoringRequest("ab", "d")])[0].is_greedy
                assert model.generate([GenerationRequest("ab", 3, ("\n",))])[0].text == "x"
            assert not vllm.loaded and not list((tmp_path / "served").iterdir())
        assert len(set(vllm.ever)) == len(vllm.ever) == 2 + 2
        paths = [request.path for request in server.received[connecting:]]
    seen = vllm.seen[vllm.ever[-1]]
    assert seen["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert seen["config"]["r"] == 5 and seen["config"]["lora_alpha"] == 5
    # The second time everything but loading and unloading was known.
    assert paths.count("/v1/completions") == 4


def test_what_is_written_is_the_merge_that_the_recipe_says(tmp_path: Path, loras: dict[str, Path]):
    """The server would score another merge than the one that is exported."""
    from safetensors.numpy import load_file

    def product(folder: Path, scaling: float) -> np.ndarray[Any, Any]:
        a, b = (
            next(tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items() if side in name)
            for side in ("lora_A", "lora_B")
        )
        return scaling * (b @ a)

    params = {"weight[a]": 0.5, "weight[b]": -1.0}
    recipes = {
        "sum": (RECIPE, 5, 0.5 * product(loras["a"], 2.0) - product(loras["b"], 4 / 3)),
        "cat": (Recipe("lora_cat", {"a": "a", "b": "b"}, params), 5, None),
        "svd": (Recipe("lora_svd", {"a": "a", "b": "b"}, {**params, "rank": 4}), 4, None),
        "factor": (Recipe("lora_factor", {"a": "a", "b": "b"}, params), 3, None),
    }
    vllm = RecordedVllm()
    with serve(vllm) as server, connected(server.url, tmp_path, max_rank=5) as backend:
        for name, (recipe, rank, expected) in recipes.items():
            with backend.apply(recipe):
                (folder,) = vllm.loaded.values()
                config = json.loads((folder / "adapter_config.json").read_text())
                assert (config["r"], config["lora_alpha"]) == (rank, rank), name
                if expected is not None:
                    assert np.allclose(product(folder, 1.0), expected, atol=1e-5)
        with backend.apply(SPACE.recipe({"weight[a]": 0.0, "weight[b]": 0.0})) as base:
            assert not vllm.loaded and base.loglikelihood([ScoringRequest("a", "c")])[0].tokens == 1
        with pytest.raises(UserError, match="task_arithmetic"):
            backend.apply(Recipe("ties", {"a": "a"}, {"weight[a]": 1.0}))
    with serve(vllm) as server, connected(server.url, tmp_path, max_rank=4) as backend:
        with pytest.raises(UserError, match=r"rank 5, the server takes 4.*lora_svd"), backend.apply(RECIPE):
            pass
        assert not list((tmp_path / "served").iterdir()) and not vllm.loaded


def test_a_resumed_search_asks_nothing_again_though_the_names_differ(tmp_path: Path, loras: dict[str, Path]):
    """Names of candidates pass; keyed by them, a resumed search would pay for everything twice."""
    cache, counts = MemoryCache(), []
    other = SPACE.recipe({"weight[a]": 0.25, "weight[b]": -1.0})
    with serve(RecordedVllm()) as server:
        for recipe in (RECIPE, other, RECIPE, other):
            with connected(server.url, tmp_path, cache) as backend, backend.apply(recipe) as model:
                before = len(server.received)
                model.loglikelihood([ScoringRequest("what", " now"), ScoringRequest("is", "then")])
                counts.append(sum(request.path == "/v1/completions" for request in server.received[before:]))
    assert counts == [8, 8, 0, 0]


def test_a_method_that_the_backend_cannot_do_is_found_out_before_the_search(tmp_path: Path, loras: dict[str, Path]):
    models = {name: str(path) for name, path in SPACE.models.items()}
    space = MergeSpace(models, method=["lora_cat", "ties"], base_model=SPACE.base_model, parameters={"weight": [0, 1]})
    with serve(RecordedVllm()) as server:
        settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served"})
        (problem,) = try_backend(settings, space, ModelPlaces(tmp_path), ["loglikelihood"]).problems
    assert problem.startswith("ties cannot be done by scaling whole LoRAs")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(404, "Not Found", "NotFoundError"), "http 404"),
        (error(500, "Call to add_lora method failed: LoRA rank 5 is greater than max_lora_rank 4", "Internal"), "rank"),
        (Answer(200, b"something else"), "did not take"),
    ],
)
def test_a_refused_lora_is_a_failed_candidate_and_leaves_nothing(
    answer: Answer, words: str, tmp_path: Path, loras: dict[str, Path]
):
    """A server started wrongly would end as scores of the base model, or fill the disk."""
    vllm = RecordedVllm()
    well: list[bool] = []

    def refusing(request: Received) -> Answer:
        return answer if request.path == "/v1/load_lora_adapter" and not well else vllm(request)

    with serve(refusing) as server:
        settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served", "attempts": 1})
        (problem,) = try_backend(settings, SPACE, ModelPlaces(tmp_path), ["loglikelihood"]).problems
        assert words.removeprefix("http ") in problem and not list((tmp_path / "served").iterdir())
        well.append(True)
        with connected(server.url, tmp_path) as backend:
            well.clear()
            with pytest.raises(EvaluationError) as raised, backend.apply(RECIPE):
                pass
            assert words in f"{raised.value.kind} {raised.value}"
            assert not list((tmp_path / "served").iterdir())


def test_what_is_set_up_wrongly_is_told_beforehand(tmp_path: Path, loras: dict[str, Path]):
    with serve(RecordedVllm()) as server:
        for more, words in (({"lora_folder": "nowhere"}, "nowhere"), ({"base_model": "other"}, BASE)):
            settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served", **more})
            (problem,) = try_backend(settings, SPACE, ModelPlaces(tmp_path), ["loglikelihood"]).problems
            assert words in problem


def test_a_lora_that_is_more_than_matrices_is_told_beforehand(tmp_path: Path, loras: dict[str, Path]):
    """vLLM would load it without its bias, and every candidate would be scored so."""
    from safetensors.numpy import load_file, save_file

    file = loras["b"] / "adapter_model.safetensors"
    bias = {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": np.ones(6, dtype=np.float32)}
    save_file({**load_file(file), **bias}, file)
    with serve(RecordedVllm()) as server:
        settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served"})
        (problem,) = try_backend(settings, SPACE, ModelPlaces(tmp_path), ["loglikelihood"]).problems
        assert "'b' also changes biases" in problem


def test_answers_of_another_token_or_without_numbers_are_not_believed(tmp_path: Path, loras: dict[str, Path]):
    """A server that ignores logit_bias would give likely tokens' scores to unlikely ones."""
    vllm = RecordedVllm()
    damage: dict[str, Any] = {}

    def lying(request: Received) -> Answer:
        answer = vllm(request)
        if request.path != "/v1/completions" or not damage:
            return answer
        content = json.loads(answer.body)
        content["choices"][0]["logprobs"].update(damage)
        return as_json(content)

    with serve(lying) as server, connected(server.url, tmp_path) as backend:
        for wrong in (
            {"tokens": ["token_id:5"]},
            {"token_logprobs": [None]},
            {"token_logprobs": []},
            {"top_logprobs": []},
        ):
            damage.clear()
            with backend.apply(RECIPE) as model:
                damage.update(wrong)
                with pytest.raises(EvaluationError):
                    model.loglikelihood([ScoringRequest("ab", "c")])


@pytest.mark.parametrize("idle", [("a", "b"), ("b",)])
def test_a_lora_under_which_the_server_answers_as_the_base_is_named_beforehand(
    tmp_path: Path, loras: dict[str, Path], idle: tuple[str, ...]
):
    """vLLM takes a LoRA whose modules it does not have, and the whole budget would score the base model."""
    vllm = RecordedVllm()
    ranks = {"a": 2, "b": 3}

    def deaf(request: Received) -> Answer:
        name = request.json["model"] if request.path == "/v1/completions" else BASE
        if name == BASE or vllm.seen[name]["config"]["r"] not in [ranks[one] for one in idle]:
            return vllm(request)
        return vllm._complete({**request.json, "model": BASE})

    with serve(deaf) as server:
        settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served"})
        (problem,) = try_backend(settings, SPACE, ModelPlaces(tmp_path), ["loglikelihood"]).problems
    assert f"LoRA {idle[0]!r} changes nothing" in problem
    assert not vllm.loaded and not list((tmp_path / "served").iterdir())


def test_what_connecting_proves_is_said(tmp_path: Path, loras: dict[str, Path]):
    with serve(RecordedVllm()) as server, connected(server.url, tmp_path) as backend:
        assert "each LoRA alone changes the answers (by 1.2 nats or more), no two are answered alike" in backend.proved


@pytest.mark.parametrize(
    ("fault", "words"),
    [("one name for another", "'a' and 'b' are answered alike"), ("the last LoRA stays", "otherwise under a name")],
)
def test_a_server_that_mixes_up_loras_is_found_before_anything_is_scored(
    tmp_path: Path, loras: dict[str, Path], fault: str, words: str
):
    """Candidates would be scored as one another, or as what was asked before them."""
    vllm = RecordedVllm()
    shown: list[str] = []

    def muddled(request: Received) -> Answer:
        if request.path != "/v1/completions":
            return vllm(request)
        name = request.json["model"]
        if name != BASE:
            shown.append(name)
        if fault == "one name for another" and name != BASE:
            name = shown[0]
        elif fault == "the last LoRA stays" and shown and len(set(shown)) == len(loras):
            name = shown[-1] if name == BASE else name
        vllm.loaded.setdefault(name, tmp_path)
        return vllm._complete({**request.json, "model": name})

    with serve(muddled) as server:
        settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served"})
        (problem,) = try_backend(settings, SPACE, ModelPlaces(tmp_path), ["loglikelihood"]).problems
    assert words in problem and not list((tmp_path / "served").iterdir())


def test_another_base_model_under_the_same_name_gets_no_old_answers(tmp_path: Path, loras: dict[str, Path]):
    """A new checkpoint would be scored by the old one's answers; a jitter would pay for all of them again."""
    vllm, cache = RecordedVllm(), MemoryCache()
    shift = [0.0]

    def moved(request: Received) -> Answer:
        answer = vllm(request)
        if request.path != "/v1/completions":
            return answer
        content = json.loads(answer.body)
        listed = content["choices"][0]["logprobs"]
        listed["token_logprobs"] = [value - shift[0] for value in listed["token_logprobs"]]
        listed["top_logprobs"] = [{name: value - shift[0] for name, value in listed["top_logprobs"][0].items()}]
        return as_json(content)

    found = []
    with serve(moved) as server:
        for shift[0] in (0.0, 0.01, 1.0, 0.0):
            with connected(server.url, tmp_path, cache) as backend, backend.apply(RECIPE) as model:
                found.append(model.loglikelihood([ScoringRequest("ab", "c")])[0].logprob)
    assert found == pytest.approx([found[0], found[0], found[0] - 1.0, found[0]])


def test_a_prompt_that_loses_its_beginning_says_so(tmp_path: Path, loras: dict[str, Path]):
    """The question may stand there; its item would be wrong without a word."""
    with serve(RecordedVllm()) as server, connected(server.url, tmp_path) as backend, backend.apply(RECIPE) as model:
        scored = model.loglikelihood([ScoringRequest("a" * size, "c") for size in (63, 64)])
        written = model.generate([GenerationRequest("a" * size, 4) for size in (60, 61)])
    assert [one.shortened for one in scored] == [one.shortened for one in written] == [False, True]


def test_a_study_of_an_earlier_version_keeps_its_key(tmp_path: Path, loras: dict[str, Path]):
    """An upgrade would pay for every answer again."""
    with serve(RecordedVllm()) as server:
        settings = read_settings({"type": "vllm", "url": server.url, "lora_folder": "served"})
        for known, ending in (({}, r"-\d+\.\d\d"), (None, "#0")):
            backend = make_backend(settings, SPACE, ModelPlaces(tmp_path), None, known)
            assert re.fullmatch(rf"vllm {BASE} {ending}", backend.client.server)
            backend.close()


def vllm_study(folder: Path, url: str, **models: str) -> Path:
    """A study file of LoRAs that a vLLM server takes."""
    items = [{"prompt": f"p{index}", "answer": "x"} for index in range(6)]
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    content = {
        "study": "served",
        "merge": {"method": "task_arithmetic", "models": models, "space": {"weight": [0.0, 1.0]}},
        "backend": {"type": "vllm", "url": url, "lora_folder": "served"},
        "tasks": {"likely": {"type": "jsonl", "path": "items.jsonl", "metric": "loss"}},
        "objectives": ["likely"],
        "search": {"sampler": "random", "evaluations": 4},
        "storage": "sqlite:///study.db",
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(content))
    return path


def test_a_study_whose_lora_was_trained_again_is_not_continued(tmp_path: Path, loras: dict[str, Path]):
    """Answers of the old LoRA are kept under the recipe's name: scores of two LoRAs would stand in one study."""
    from safetensors.numpy import load_file, save_file

    from mergefront.running.run import resume, run

    with serve(RecordedVllm()) as server:
        path = vllm_study(tmp_path, server.url, a="a", b="b")
        run(path)
        trained = loras["a"] / "adapter_model.safetensors"
        save_file({name: tensor * 2 for name, tensor in load_file(trained).items()}, trained)
        for again in (
            lambda: run(path, evaluations=5),
            lambda: resume("served", storage=f"sqlite:///{tmp_path / 'study.db'}", evaluations=5),
        ):
            with pytest.raises(UserError, match=r"(content.a: was|a: its content has changed)"):
                again()


@pytest.mark.long
def test_loras_of_a_server_come_by_name(tmp_path: Path, loras: dict[str, Path]):
    """Without: who serves a base with vLLM downloads every LoRA by hand, though the study names it."""
    from hub_server import hub_server

    from mergefront.storage.database import Database
    from mergefront.storage.studies import all_studies

    with hub_server() as hub, serve(RecordedVllm()) as server:
        published = hub.add("lab/maths", loras["a"])
        path = vllm_study(tmp_path, server.url, a="lab/maths", b="b")
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-m", "mergefront", "run", str(path)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
    (record,) = all_studies(Database(f"sqlite:///{tmp_path / 'study.db'}"))
    assert record.definition["evaluator"]["content"]["lab/maths"] == published.shas()[-1]


def test_a_conversation_is_written_by_the_servers_template(tmp_path: Path, loras: dict[str, Path]):
    """Exactly as its chat route does, with the tokens of the assistant's turn for an answer that is scored."""
    chat = Chat((Message("user", "2 + 2?"),), options='{"enable_thinking": false}')
    recorded = RecordedVllm()
    with serve(recorded) as server, connected(server.url, tmp_path) as backend, backend.apply(RECIPE) as model:
        (scored,) = model.loglikelihood([ScoringRequest(chat, " four\n")])
        assert scored.tokens == len("four")
        model.generate([GenerationRequest(chat, 3, temperature=0.5, seed=2**31 + 7)])
        sent = next(request.json for request in reversed(server.received) if request.path == "/v1/completions")
        assert (sent["temperature"], sent["seed"]) == (0.5, 7)
        prompts = [request.json["prompt"] for request in server.received if request.path == "/v1/completions"]
        assert "".join(map(chr, prompts[-1])) == "u:2 + 2?;a:"
        assert "u:2 + 2?;a:fou" in ["".join(map(chr, prompt)) for prompt in prompts]
    assert recorded.options == [{"enable_thinking": False}] * 2
    refused = ServerChats.refusal(Chat(chat.messages, template="{{ messages }}"))
    assert "own template, which takes no template" in refused
