"""A Hub on this machine with a whole model in it, as huggingface_hub sees the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, hub_of_this_process


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_of_this_process(tmp_path, monkeypatch) as server:
        yield server
