"""Reading checkpoints: strangers' files are refused with a reason, good ones cost no memory until read."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.compatibility import compare_headers
from mergefront.adapters.checkpoints.header import Checkpoint, read_header
from mergefront.adapters.checkpoints.tokenizers import read_vocabulary
from mergefront.optimizer.errors import UserError


def folder(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def raw(path: Path, header: object, data: bytes = b"\0" * 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_come_back_as_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.empty(0, 3).to(dtype),
    }
    opened = Checkpoint(folder(tmp_path / "m", tensors))
    assert set(opened) == set(tensors)
    for name, tensor in tensors.items():
        assert opened[name].dtype == dtype and torch.equal(opened[name], tensor)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"a": torch.ones(4)})
    Checkpoint(path)["a"].zero_()
    assert torch.equal(Checkpoint(path)["a"], torch.ones(4))


def test_unaligned_data_is_read(tmp_path: Path) -> None:
    text = json.dumps({"a": entry(0, 8)}).encode()
    text += b" " * ((3 - (8 + len(text))) % 4)
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + struct.pack("<2f", 1.5, -2.0))
    assert Checkpoint(path)["a"].tolist() == [1.5, -2.0]


def test_shards_are_joined_and_a_missing_one_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert set(Checkpoint(tmp_path)) == {"a", "b"}
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        read_header(tmp_path)


def test_an_index_cannot_reach_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UserError, match="plain file name"):
        read_header(tmp_path)


FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json", "tokenizer.json",
    "tokenizer_config.json", "generation_config.json", "vocab.txt", "additional_chat_templates/rag.jinja",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_users_is_not_read_through_a_strangers_link(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path / "strangers", {"a": torch.ones(2)})
    own = folder(tmp_path / "own", {"a": torch.ones(2)})
    for each in (own, path):
        (each / name).parent.mkdir(exist_ok=True)
    (own / name).touch()
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(own / name)
    with pytest.raises(UserError, match="leads out of the model's folder"):
        read_header(path)


@pytest.mark.parametrize("name", FILES)
def test_pipes_and_devices_in_a_model_are_refused_unopened(tmp_path: Path, name: str) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    path = folder(tmp_path / "strangers", {"a": torch.ones(2)})
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    with pytest.raises(UserError, match=f"{name}: this is no file"):
        read_header(path)
    with pytest.raises(UserError, match="never opened"):
        read_header(path / name)
    with pytest.raises(UserError, match="never opened"):
        read_header("/dev/zero")


def test_a_vocabulary_is_not_read_through_a_link_or_from_a_pipe(tmp_path: Path) -> None:
    """Folders that only give their tokenizer are read without a header."""
    for name in ("vocab.txt", "tokenizer.model", "tekken.json"):
        path = tmp_path / name
        path.mkdir()
        (path / name).symlink_to("/etc/hosts")
        with pytest.raises(UserError, match="leads out of the model's folder"):
            read_vocabulary(path)
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(UserError, match="this is no file"):
            read_vocabulary(path)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"a": torch.ones(2)})
    (path / "vocab.txt").symlink_to("vocab.txt")
    with pytest.raises(UserError, match="this is no file"):
        read_header(path)


def test_the_cache_of_the_hub_is_read_through_its_links(tmp_path: Path) -> None:
    snapshot = folder(tmp_path / "models--x--y/snapshots/1234", {"a": torch.ones(2)}, model_type="llama")
    blobs = tmp_path / "models--x--y/blobs"
    blobs.mkdir()
    for number, name in enumerate(("config.json", "model.safetensors")):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert read_header(snapshot).config == {"model_type": "llama"} and set(Checkpoint(snapshot)) == {"a"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match="safetensors"):
            read_header(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([1], "JSON object"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "overlaps"),
        ({"a": entry(0, 8, dtype="F31")}, "F31"),
        ({"a": entry(0, 8, [3])}, "do not hold"),
        ({"a": entry(0, 8, [2**40, 2**40])}, "do not hold"),
        ({"a": entry(0, 4096)}, "cut off"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, "malformed"),
        ({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, "malformed"),
        ({"a": {"shape": [1]}}, "malformed"),
        ({"a": 3}, "malformed"),
    ],
)
def test_hostile_headers_are_user_errors(tmp_path: Path, header: object, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_header(raw(tmp_path / "x.safetensors", header))


def test_a_header_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(UserError, match="claims"):
        read_header(path)


@given(st.binary(max_size=200))
def test_no_bytes_whatsoever_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(data)
    try:
        read_header(path)
    except UserError as error:
        assert "x.safetensors" in str(error)


def headers(
    tmp_path: Path, base: dict[str, torch.Tensor], expert: dict[str, torch.Tensor], **config: object
) -> list[str]:
    return compare_headers(
        read_header(folder(tmp_path / "base", base, **config)),
        read_header(folder(tmp_path / "expert", expert, **config)),
        "maths",
    )


def test_another_vocabulary_points_at_transplantation(tmp_path: Path) -> None:
    name = "model.embed_tokens.weight"
    (problem,) = headers(tmp_path, {name: torch.ones(8, 2)}, {name: torch.ones(9, 2)})
    assert "tokenizer_source" in problem and "[9, 2]" in problem and "[8, 2]" in problem


def test_other_shapes_and_names_are_listed_briefly(tmp_path: Path) -> None:
    base = {f"layers.{i}.w": torch.ones(2, 2) for i in range(9)} | {"only_base": torch.ones(1)}
    expert = {f"layers.{i}.w": torch.ones(2, 3) for i in range(9)} | {"only_expert": torch.ones(1)}
    problems = headers(tmp_path, base, expert)
    assert len(problems) == 3
    assert "layers.0.w is [2, 3] and not [2, 2]" in problems[0] and "and 6 more" in problems[0]
    assert "only_base" in problems[1] and "only_expert" in problems[2]


def test_a_tied_head_may_be_saved_or_not(tmp_path: Path) -> None:
    embedding = {"model.embed_tokens.weight": torch.ones(8, 2)}
    both = embedding | {"lm_head.weight": torch.ones(8, 2)}
    assert headers(tmp_path / "1", embedding, both, tie_word_embeddings=True) == []
    assert headers(tmp_path / "2", both, embedding, tie_word_embeddings=True) == []
    untied = compare_headers(
        read_header(folder(tmp_path / "b", embedding, tie_word_embeddings=True)),
        read_header(folder(tmp_path / "e", both, tie_word_embeddings=False)),
        "maths",
    )
    assert len(untied) == 1 and "untie" in untied[0]
