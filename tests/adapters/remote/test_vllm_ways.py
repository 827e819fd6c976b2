"""Merges that are made here and read by a vLLM server from a folder; and a server that ends with who started it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from mergefront.adapters.merging.checkpoint_merges import CheckpointMerges, MergedModels
from mergefront.adapters.remote.http.client import HttpClient
from mergefront.adapters.remote.settings import VllmSection
from mergefront.adapters.remote.vllm import launcher
from mergefront.adapters.remote.vllm.ways import ByReload, FromFile
from mergefront.optimizer.errors import EvaluationError

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import as_json, serve
from vllm_exchanges import EXPERTS, make_models, recipes
from vllm_worker import Worker


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> MergedModels:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return MergedModels(str(folder / "base"), {name: str(folder / name) for name in EXPERTS})


@pytest.fixture
def worker(models: MergedModels) -> Worker:
    return Worker(Path(models.base))


@pytest.fixture
def client(worker: Worker) -> Iterator[HttpClient]:
    with (
        serve(lambda request: as_json(worker.answer(request.path, request.json if request.body else None))) as served,
        HttpClient(served.url) as client,
    ):
        yield client


def expected(models: MergedModels, number: int) -> dict[str, torch.Tensor]:
    return dict(CheckpointMerges(models).tensors(recipes()[number]))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_worker_reads_each_merge_from_one_folder(
    models: MergedModels, worker: Worker, client: HttpClient, tmp_path: Path
) -> None:
    way = FromFile(client, models, "run", tmp_path, None)
    for number in (2, 3):
        delta_l1 = client.run(way.send(recipes()[number], f"run-{number}", ()))
        assert same(worker.holds, expected(models, number)) and delta_l1 > 0
        assert client.run(way.versions()) == [f"run-{number}"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    way.close()
    assert worker.mergefront_state()["version"] is None


def test_what_is_not_finite_is_not_written(
    models: MergedModels, worker: Worker, client: HttpClient, tmp_path: Path
) -> None:
    way = FromFile(client, replace(models, dtype="float16"), "run", tmp_path, None)
    with pytest.raises(EvaluationError, match="not finite"):
        client.run(way.send(recipes()[1].with_params(**{"weight[sums]": 1e8}), "run-0", ()))
    assert not worker.holds and not list(tmp_path.iterdir())


def test_vllm_s_own_means_get_the_tied_head_too(
    models: MergedModels, worker: Worker, client: HttpClient, tmp_path: Path
) -> None:
    """Without it in the file, vLLM on a CPU keeps the head that it packed of the old embeddings, and answers 200."""
    way = ByReload(client, models, "run", tmp_path, None)
    way.open()
    assert client.run(way.versions()) == [None]
    client.run(way.send(recipes()[2], "run-0", ()))
    merged = expected(models, 2)
    assert same(worker.holds, {**merged, "lm_head.weight": merged["model.embed_tokens.weight"]})
    assert client.run(way.versions()) == ["run-0"]
    way.close()
    assert client.run(way.versions()) == [None]


def test_loras_at_run_time_need_a_folder_and_whole_merges_are_somewhere_else() -> None:
    with pytest.raises(ValueError, match="type: local, engine: vllm, vllm"):
        VllmSection.model_validate({"type": "vllm", "url": "http://127.0.0.1:8000"})


SERVER = """
import multiprocessing, pathlib, sys, time
if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    pathlib.Path(sys.argv[1]).write_text("up")
    worker.join()
"""


def test_a_server_ends_with_whoever_started_it_however_that_ended(tmp_path: Path) -> None:
    module = tmp_path / "vllm/entrypoints/openai/api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(SERVER)
    up = tmp_path / "up"
    command = [sys.executable, launcher.__file__, str(up)]
    environment = {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    while not up.exists():
        assert process.poll() is None
        time.sleep(0.05)
    family = [process, *psutil.Process(process.pid).children(recursive=True)]
    assert process.stdin is not None and len(family) > 1
    process.stdin.close()  # as the end of its parent closes it
    process.wait(30)
    psutil.wait_procs(family[1:], 30)
    assert not any(psutil.pid_exists(one.pid) for one in family[1:])
