"""Whole merges in vLLM: against what a real one answered (tests/support/vllm_exchanges.py), and servers that err.

With a real vLLM at hand: make test-vllm.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.remote.settings import VllmEngineSection
from mergefront.optimizer.errors import EvaluationError, UserError

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, as_json, serve
from vllm_exchanges import EXPERTS, Exchanges, make_models, questions, recipes, searched


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@pytest.fixture(scope="module")
def here(models: Path) -> list[tuple[list[Any], list[Any]]]:
    """What the local backend answers, recipe by recipe."""
    backend = LocalBackend.from_checkpoints(models / "base", {name: models / name for name in EXPERTS}, device="cpu")
    found = []
    for recipe in recipes():
        with backend.apply(recipe) as merged:
            scoring, writing = questions()
            found.append((merged.loglikelihood(scoring), merged.generate(writing)))
    return found


def expect_the_same(backend: Any, here: list[tuple[list[Any], list[Any]]]) -> None:
    scoring, writing = questions()
    for recipe, (scores, texts) in zip(recipes(), here, strict=True):
        with backend.apply(recipe) as merged:
            scored, written = merged.loglikelihood(scoring), merged.generate(writing)
        assert [one.logprob for one in scored] == pytest.approx([one.logprob for one in scores], abs=1e-4)
        assert [(one.tokens, one.is_greedy) for one in scored] == [(one.tokens, one.is_greedy) for one in scores]
        assert written == texts


def test_a_merge_is_scored_and_written_on_as_by_the_local_backend(models: Path, here: Any) -> None:
    """Five merges and the base, with embeddings and norms of their own; a prompt that is in the server's cache."""
    with serve(Exchanges.load().playing()) as served:
        backend = searched(served.url, models)
        expect_the_same(backend, here)
        backend.close()


Change = Callable[[Received, Answer, Exchanges], Answer]


@pytest.fixture
def erring(models: Path) -> Iterator[Callable[[Change], Any]]:
    """A backend at a server whose recorded answers a function changes; closed afterwards."""
    opened: list[Any] = []

    def connect(change: Change) -> Any:
        exchanges = Exchanges.load()
        play = exchanges.playing()
        server = serve(lambda request: change(request, play(request), exchanges))
        opened.append(server)
        backend = searched(server.__enter__().url, models)
        opened.append(backend)
        return backend

    yield connect
    for one in reversed(opened):
        one.close() if hasattr(one, "close") else one.__exit__(None, None, None)


def called(request: Received) -> str:
    """The method of a worker that is called, if one is."""
    return str(request.json["method"]) if request.path == "/collective_rpc" else ""


def test_weights_that_a_server_lost_are_sent_again_and_what_it_said_meanwhile_does_not_count(
    erring: Callable[[Change], Any], here: Any
) -> None:
    """It was started again before it was asked, and answers as its base until it gets weights."""
    base, is_lost = "", False

    def forgetful(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        nonlocal base, is_lost
        if called(request) == "mergefront_merge":
            base, is_lost = exchanges.weights if exchanges.merges == 4 else base, False
        if is_lost and called(request) == "mergefront_state":
            return as_json({"results": [{**json.loads(answer.body)["results"][0], "version": None}]})
        if is_lost and request.path == "/v1/completions":
            exchanges.weights = base
            return exchanges.playing()(request)
        return answer

    backend = erring(forgetful)
    with backend.apply(recipes()[0]):
        pass
    with backend.apply(recipes()[1]) as merged:
        is_lost = True
        scored = merged.loglikelihood(questions()[0])
    assert not is_lost, "the weights were sent again"
    assert [one.logprob for one in scored] == pytest.approx([one.logprob for one in here[1][0]], abs=1e-4)


def test_weights_of_another_search_are_noticed(erring: Callable[[Change], Any]) -> None:
    taken = {"over": False}

    def shared(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        if taken["over"] and called(request) == "mergefront_state":
            return as_json({"results": [{**json.loads(answer.body)["results"][0], "version": "0ther-3"}]})
        return answer

    backend = erring(shared)
    with backend.apply(recipes()[0]) as merged:
        taken["over"] = True
        with pytest.raises(UserError, match="another search gives this server weights"):
            merged.loglikelihood(questions()[0])


def test_a_search_that_lives_keeps_its_server_from_others(erring: Callable[[Change], Any]) -> None:
    silent = iter((4.0, 1.0))

    def busy(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        if called(request) != "mergefront_state":
            return answer
        [known] = json.loads(answer.body)["results"]
        return as_json({"results": [{**known, "version": "0ther-3", "silent": next(silent)}]})

    with pytest.raises(UserError, match="another search uses this server"):
        erring(busy)


def test_methods_that_the_server_does_not_know_are_merged_here(models: Path, tmp_path: Path) -> None:
    with serve(Exchanges.load().playing()) as served:
        with pytest.raises(UserError, match="methods of your own are merged here"):
            searched(served.url, models, VllmEngineSection(url=served.url, weights="merge"), merges_here=True)
        settings = VllmEngineSection(url=served.url, folder=str(tmp_path))
        with pytest.raises(UserError):  # the server that was recorded was never told to read a file
            searched(served.url, models, settings, merges_here=True)
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_server_is_never_left_paused(erring: Callable[[Change], Any]) -> None:
    """Whoever comes next would wait for ever."""
    asked: list[str] = []

    def failing(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        asked.append(request.path)
        return (
            as_json({"error": "lost"}, 400)
            if called(request) == "mergefront_merge" and exchanges.merges == 4
            else answer
        )

    backend = erring(failing)
    with pytest.raises(EvaluationError), backend.apply(recipes()[1]):
        pass
    assert asked[-3:] == ["/pause?mode=wait", "/collective_rpc", "/resume"]


def test_a_merge_that_is_not_finite_is_one_failed_candidate(erring: Callable[[Change], Any]) -> None:
    def overflowing(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        if called(request) == "mergefront_merge" and exchanges.merges == 4:
            return as_json({"results": [{"ok": False, "kind": "not finite", "error": "tensor 'x' is not finite"}]})
        return answer

    backend = erring(overflowing)
    with pytest.raises(EvaluationError, match="tensor 'x' is not finite"), backend.apply(recipes()[1]):
        pass
    with backend.apply(recipes()[2]) as merged:
        assert merged is not None


def replaced(method: str, answer: dict[str, Any], status: int = 200) -> Change:
    """A server that answers a call to its workers otherwise."""

    def change(request: Received, told: Answer, exchanges: Exchanges) -> Answer:
        if called(request) != method:
            return told
        if "results" not in json.loads(told.body or b"{}"):
            return as_json(answer, status)
        [known] = json.loads(told.body)["results"]
        return as_json(answer if status != 200 else {"results": [{**known, **answer}]}, status)

    return change


def at(path: str, instead: Answer) -> Change:
    """A server that answers to one path otherwise."""
    return lambda request, told, _: instead if request.path == path else told


OTHER_WORKER = as_json({"vllm_config": {"model_config": {"model": "m", "dtype": "torch.float32"}}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at("/version", as_json({"version": "0.15.1"})), "vLLM 0.15.1; whole merges need 0.16 or later"),
        (at("/is_paused", as_json({"detail": "Not Found"}, 404)), "VLLM_SERVER_DEV_MODE=1"),
        (at("/server_info?config_format=json", OTHER_WORKER), "--worker-extension-cls mergefront"),
        (replaced("mergefront_state", {"quantization": "fp8"}), "quantised"),
        (replaced("mergefront_state", {"dtype": "bfloat16"}), "--dtype float32"),
        (replaced("mergefront_open", {"ok": False, "kind": "user", "error": "of another shape"}), "of another shape"),
    ],
)
def test_a_server_that_cannot_is_told_apart_before_anything_is_scored(
    erring: Callable[[Change], Any], change: Change, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        erring(change)


def test_a_head_that_kept_the_embeddings_of_before_is_found_by_the_canary(erring: Callable[[Change], Any]) -> None:
    """As vLLM's tied heads on a CPU are, unless they are packed again."""
    before: dict[bytes, Answer] = {}

    def stale(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        if request.path != "/v1/completions":
            return answer
        if exchanges.merges == 0:
            before[request.body] = answer
        return before.get(request.body, answer) if exchanges.merges == 1 else answer

    with pytest.raises(UserError, match="keeps the embeddings, the output head or the prompts"):
        erring(stale)


def test_weights_that_stay_behind_are_found_by_the_canary(erring: Callable[[Change], Any]) -> None:
    kept: dict[bytes, Answer] = {}

    def sticky(request: Received, answer: Answer, exchanges: Exchanges) -> Answer:
        if request.path != "/v1/completions":
            return answer
        if exchanges.merges == 2:
            kept[request.body] = answer
        return kept.get(request.body, answer) if exchanges.merges == 3 else answer

    with pytest.raises(UserError, match="keeps something of the weights before"):
        erring(sticky)


def test_the_folder_of_merges_is_found_from_the_studys_and_missed_before_a_search(tmp_path: Path) -> None:
    from mergefront.adapters.remote.settings import VllmEngineSection

    (tmp_path / "shared").mkdir()
    assert VllmEngineSection(folder="shared").at(tmp_path).folder == str(tmp_path / "shared")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        VllmEngineSection(folder="nowhere").at(tmp_path)


REAL = os.environ.get("MERGEFRONT_VLLM_PYTHON", "")


@pytest.fixture
def started(models: Path) -> Iterator[Any]:
    from mergefront.adapters.merging.checkpoint_merges import MergedModels
    from mergefront.adapters.remote.vllm.whole_merges import VllmMerges

    merged = MergedModels(str(models / "base"), {name: str(models / name) for name in EXPERTS})
    backend = VllmMerges(merged, models / "base", recipes()[1], VllmEngineSection(python=REAL), "float32")
    yield backend
    backend.close()


@pytest.mark.vllm
def test_a_real_server_is_exact_needs_no_more_memory_with_time_and_is_started_again(started: Any, here: Any) -> None:
    expect_the_same(started, here)

    def resident() -> int:
        server = psutil.Process(started.process_id)
        return sum(one.memory_info().rss for one in (server, *server.children(recursive=True)))

    before = resident()
    for recipe in recipes() * 2:
        started.send(recipe)
    assert resident() < before + 30e6, "a model of this size has 1.5 MB"
    with started.apply(recipes()[2]) as merged:
        os.killpg(started.process_id, signal.SIGKILL)
        scored = merged.loglikelihood(questions()[0])
    assert [one.logprob for one in scored] == pytest.approx([one.logprob for one in here[2][0]], abs=1e-4)
