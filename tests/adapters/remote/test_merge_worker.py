"""The vLLM worker's own part, in a worker that keeps what it is given: merges as the engine's, errors as answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_exchanges import EXPERTS, make_models, recipes
from vllm_worker import Worker

from mergefront.adapters.merging.checkpoint_merges import MergedModels
from mergefront.adapters.merging.engine import MergeEngine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


def opened(models: Path, dtype: str = "float32") -> Worker:
    worker = Worker(models / "base")
    merged = MergedModels(str(models / "base"), {name: str(models / name) for name in EXPERTS}, dtype)
    assert worker.mergefront_open(merged.to_json()) == {"ok": True}
    return worker


def engine_s(models: Path, number: int, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    engine = MergeEngine(models / "base", {name: models / name for name in EXPERTS})
    return dict(engine.iterate(recipes()[number], dtype=dtype))


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_takes_every_tensor_of_the_engine_s_merge_rounded_and_packs_the_head(models: Path, dtype: str) -> None:
    worker = opened(models, dtype)
    answer = worker.mergefront_merge(recipes()[3].to_json(), "run-0")
    assert answer["ok"] and same(worker.holds, engine_s(models, 3, getattr(torch, dtype)))
    assert worker.head.times == 1 and worker.mergefront_state()["version"] == "run-0"


def test_exchanged_tokens_move_their_rows_alone(models: Path) -> None:
    worker = opened(models)
    assert worker.mergefront_merge(recipes()[2].to_json(), "run-0", [[3, 150], [7, 120]])["ok"]
    plain = engine_s(models, 2)
    embedding = plain["model.embed_tokens.weight"].clone()
    embedding[[3, 150, 7, 120]] = embedding[[150, 3, 120, 7]]
    assert same(worker.holds, {**plain, "model.embed_tokens.weight": embedding})


def test_what_is_not_finite_is_no_merge_and_is_not_left_there(models: Path) -> None:
    worker = opened(models, "float16")
    huge = recipes()[1].with_params(**{"weight[sums]": 1e8})
    answer = worker.mergefront_merge(huge.to_json(), "run-0")
    assert not answer["ok"] and answer["kind"] == "not finite"
    base = load_file(models / "base/model.safetensors")
    assert same(worker.holds, {name: tensor.half() for name, tensor in base.items()})
    assert worker.mergefront_state()["version"] is None


def test_numbers_of_earlier_weights_do_not_stay_in_the_cache_of_keys_and_values(models: Path) -> None:
    worker = opened(models)
    worker.mergefront_merge(None, "run-0")
    assert worker.model_runner.kv_caches[0][0].sum() == worker.model_runner.kv_caches[1].sum() == 0


def test_a_file_is_taken_unless_it_is_damaged(models: Path, tmp_path: Path) -> None:
    worker, tensors = Worker(models / "base"), engine_s(models, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    assert worker.mergefront_load(str(tmp_path), "run-0")["ok"] and same(worker.holds, tensors)
    for name, damaged, said in (
        ("model.norm.weight", torch.full((128,), torch.nan), "'model.norm.weight' of this merge is not finite"),
        ("model.norm.weight", torch.zeros(64), "is of another shape"),
        ("model.stranger.weight", torch.zeros(64), "has no tensor 'model.stranger.weight'"),
    ):
        save_file({**tensors, name: damaged}, tmp_path / "model.safetensors")
        answer = worker.mergefront_load(str(tmp_path), "run-1")
        assert not answer["ok"] and said in answer["error"]
        assert same(worker.holds, tensors) and worker.mergefront_state()["version"] == "run-0"
    answer = worker.mergefront_load(str(tmp_path / "elsewhere"), "run-1")
    assert answer["kind"] == "user" and "server_folder" in answer["error"]


def test_a_missing_tensor_is_no_merge(models: Path, tmp_path: Path) -> None:
    """vLLM answers 200, and keeps the last merge's tensor or what was in memory."""
    worker, tensors = Worker(models / "base"), engine_s(models, 2)
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    answer = worker.mergefront_load(str(tmp_path), "run-0")
    assert not answer["ok"] and "k_proj" in answer["error"] and not worker.holds


def test_a_search_lives_while_it_is_heard_of_and_lets_go_at_its_end(models: Path) -> None:
    worker = opened(models)
    worker.mergefront_merge(None, "run-0")
    first = worker.mergefront_state("other")["silent"]
    assert worker.mergefront_state("other")["silent"] > first, "another search's questions are no sign of life"
    assert worker.mergefront_state("run")["silent"] < first
    assert worker.mergefront_end("other")["ok"] and worker.mergefront_state()["version"] == "run-0"
    assert worker.mergefront_end("run")["ok"] and worker.mergefront_state()["version"] is None


def test_a_model_of_other_sizes_is_refused_before_anything_is_loaded(models: Path, tmp_path: Path) -> None:
    tensors = load_file(models / "base/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 128)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((models / "base/config.json").read_text())
    worker = Worker(tmp_path)
    answer = worker.mergefront_open(MergedModels(str(models / "base"), {"sums": str(models / "sums")}).to_json())
    assert not answer["ok"] and answer["kind"] == "user" and "of another shape" in answer["error"]
