"""What is fetched from the Hub, at which commit, and what the Hub refuses: against the real huggingface_hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub
from huggingface_hub import constants
from safetensors.torch import save_file

from mergefront.adapters.checkpoints.header import read_header
from mergefront.adapters.hub.names import HubName
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.hub.snapshots import commit_of, fetched, headers_only, snapshot
from mergefront.optimizer.errors import UserError

NAME = HubName("org/model")


def model(folder: Path, seed: int = 0, **files: str) -> Path:
    """A checkpoint in two shards, one large enough for large-file storage, beside what nobody may fetch."""
    (folder / "original").mkdir(parents=True)
    torch.manual_seed(seed)
    save_file({"a": torch.randn(300, 100)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.randn(3)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    for unwanted in ("pytorch_model.bin", "modeling_own.py", "consolidated.safetensors", "original/params.safetensors"):
        (folder / unwanted).write_bytes(b"unwanted")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_model_is_fetched_once_without_pickles_code_and_second_copies(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/model", model(tmp_path / "model"))
    folder = fetched(NAME, commit_of(NAME))
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert kept == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "config.json", "tokenizer.json", "chat_template.jinja",
    }  # fmt: skip
    assert read_header(folder).tensors.keys() == {"a", "b"}
    asked = len(hub.requests)
    assert fetched(NAME, folder.name) == folder
    assert len(hub.requests) == asked


def test_a_commit_stays_when_the_repository_moves_on(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/model", model(tmp_path / "first"))
    first = commit_of(NAME)
    hub.add("org/model", model(tmp_path / "second", seed=1))
    assert commit_of(NAME) != first and commit_of(HubName("org/model", "v1")) == first
    places = ModelPlaces(tmp_path, {"org/model": first})
    again = (places.folder("org/model") / "model-00001-of-00002.safetensors").read_bytes()
    assert again == (tmp_path / "first/model-00001-of-00002.safetensors").read_bytes()


def test_headers_are_read_without_the_weights(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/model", model(tmp_path / "model"))
    found = snapshot(NAME, commit_of(NAME))
    assert found.missing_bytes() == sum(found.sizes.values()) > 120_000
    looked_at = read_header(headers_only(found, tmp_path / "headers"))
    whole = read_header(tmp_path / "model")
    assert {name: info[:2] for name, info in looked_at.tensors.items()} == {
        name: info[:2] for name, info in whole.tensors.items()
    }
    assert looked_at.bytes == whole.bytes and looked_at.config == whole.config
    assert found.missing_bytes() == sum(size for path, size in found.sizes.items() if path.endswith(".safetensors"))
    fetched(NAME, found.commit)
    assert found.missing_bytes() == 0


def test_a_folder_of_a_repository_is_a_model(hub: Hub, tmp_path: Path) -> None:
    model(tmp_path / "pool/loras/maths")
    model(tmp_path / "pool/loras/law", seed=1)
    hub.add("org/pool", tmp_path / "pool")
    folder = ModelPlaces(tmp_path).folder("hf://org/pool/loras/maths")
    assert read_header(folder).tensors.keys() == {"a", "b"}
    assert not (folder.parent / "law").exists()


@pytest.mark.parametrize("inside", ["checkpoint-500", "runs/maths", "onnx [old]"])
def test_a_folder_is_a_model_whatever_it_is_called(hub: Hub, tmp_path: Path, inside: str) -> None:
    """Training leaves its LoRAs in folders whose like are skipped where nobody names them."""
    model(tmp_path / "trained" / inside)
    hub.add("org/trained", tmp_path / "trained")
    folder = ModelPlaces(tmp_path).folder(f"hf://org/trained/{inside}")
    assert read_header(folder).tensors.keys() == {"a", "b"}


def test_what_a_server_lists_stays_in_the_folder(hub: Hub, tmp_path: Path) -> None:
    """A file of the user's would be written over by a check."""
    listed = hub.add("org/model", model(tmp_path / "model")).commits[-1]
    listed |= {"../../config.json": b"{}", "/etc/config.json": b"{}"}
    assert {path for path in snapshot(NAME, commit_of(NAME)).sizes if "etc" in path or ".." in path} == set()


def test_without_a_network_the_cache_answers(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/model", model(tmp_path / "model"))
    commit = commit_of(NAME)
    folder = fetched(NAME, "main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_of(NAME) == commit and fetched(NAME, commit) == folder
    with pytest.raises(
        UserError,
        match=r"org/other is no folder here and not in the Hub's cache .* fetch it with: hf download org/other",
    ):
        commit_of(HubName("org/other"))
    with pytest.raises(UserError, match=r"hf download org/model --revision v9"):
        commit_of(HubName("org/model", "v9"))


def test_what_the_hub_refuses_is_one_line_with_the_remedy(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "model")
    hub.add("org/model", folder)
    hub.add("org/gated", folder, gated=True)
    hub.add("org/private", folder, private=True)
    fetched(NAME, commit_of(NAME))
    with pytest.raises(UserError, match=r"org/modle: .* no such repository on the Hub \(did you mean org/model\?\)"):
        commit_of(HubName("org/modle"))
    with pytest.raises(UserError, match=r"org/model@v9: the repository has no revision 'v9'"):
        commit_of(HubName("org/model", "v9"))
    with pytest.raises(UserError, match=r"org/private.* log in with 'hf auth login'"):
        commit_of(HubName("org/private"))
    gated = HubName("org/gated")
    with pytest.raises(UserError, match=r"org/gated is gated: accept its terms at .*/org/gated, then log in"):
        fetched(gated, commit_of(gated))
    hub.busy = 100
    with pytest.raises(UserError, match=r"answered 429"):
        commit_of(NAME)
    hub.busy = 0
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetched(gated, commit_of(gated)).is_dir() and commit_of(HubName("org/private"))


def test_a_repository_without_safetensors_is_refused_by_what_it_has(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/pytorch_model.bin").write_bytes(b"pickle")
    hub.add("org/old", tmp_path / "old")
    with pytest.raises(UserError, match=r"org/old on the Hub has no safetensors, only pytorch_model\.bin"):
        snapshot(HubName("org/old"), commit_of(HubName("org/old")))


def test_projections_of_an_embedder_are_fetched_and_weights_in_other_folders_are_not(hub: Hub, tmp_path: Path) -> None:
    """Without them its texts would have vectors of another size; with all folders some repositories have ten copies."""
    folder = model(tmp_path / "model")
    for place in ("2_Dense", "dense", "finetune", "Dense_not", "small"):
        (folder / place).mkdir()
        save_file({"linear.weight": torch.ones(2, 2)}, folder / place / "model.safetensors")
    hub.add("org/model", folder)
    found = fetched(NAME, commit_of(NAME))
    assert [path.parent.name for path in found.rglob("*/model.safetensors")] == ["2_Dense"]
