"""A folder becomes a repository: nobody's work is shown to the world, or half replaced, by a push."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import TOKEN, Hub
from huggingface_hub import constants

from mergefront.adapters.hub.names import HubName, repository_name
from mergefront.adapters.hub.upload import check_push, push
from mergefront.optimizer.errors import UserError

NAME = HubName("friend/merged")


@pytest.fixture
def login(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def model(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


@pytest.mark.usefixtures("login")
def test_a_new_repository_is_private_and_a_second_push_replaces_the_model(hub: Hub, tmp_path: Path) -> None:
    first = model(tmp_path / "first", model_safetensors=b"1" * 60_000, config_json=b"{}", README_md=b"# One")
    check_push(NAME, public=False)
    address = push(first, NAME, public=False, message="Trial 1")
    there = hub.repositories["friend/merged"]
    assert address == f"{hub.url}/friend/merged/commit/{there.shas()[-1]}" and there.private
    assert there.commits[-1]["model.safetensors"] == b"1" * 60_000 and there.commits[-1]["README.md"] == b"# One"
    second = model(tmp_path / "second", shard_safetensors=b"2" * 60_000, config_json=b"{}")
    check_push(NAME, public=False)
    push(second, NAME, public=False, message="Trial 2")
    assert "model.safetensors" not in there.commits[-1], "two models in one repository load as neither"
    assert there.commits[-1]["shard.safetensors"] == b"2" * 60_000 and there.commits[-1]["README.md"] == b"# One"


@pytest.mark.usefixtures("login")
def test_a_public_repository_is_pushed_to_only_where_it_is_said(hub: Hub, tmp_path: Path) -> None:
    hub.add("friend/merged", model(tmp_path / "public", config_json=b"{}"))
    with pytest.raises(UserError, match="friend/merged is there and public; say --public to push to it"):
        check_push(NAME, public=False)
    check_push(NAME, public=True)
    push(tmp_path / "public", HubName("friend/new"), public=True, message="Open")
    assert not hub.repositories["friend/new"].private


def test_without_a_login_nothing_is_begun(hub: Hub) -> None:
    with pytest.raises(UserError, match="nobody is logged in to the Hub; log in with 'hf auth login'"):
        check_push(NAME, public=False)
    assert not hub.repositories


@pytest.mark.parametrize("text", ["merged", "friend/merged@main", "hf://friend/merged", "a/b/c", ""])
def test_what_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no repository on the Hub; write it as org/name"):
        repository_name(text)
