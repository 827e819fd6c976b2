"""A reference is a path or a name on the Hub, and never taken for the other: a typo must not download a stranger's."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergefront.adapters.hub.names import HubName, hub_name
from mergefront.optimizer.errors import UserError


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("Qwen/Qwen2.5-0.5B", HubName("Qwen/Qwen2.5-0.5B")),
        ("Qwen/Qwen2.5-0.5B@v1.0", HubName("Qwen/Qwen2.5-0.5B", "v1.0")),
        ("org/name@refs/pr/3", HubName("org/name", "refs/pr/3")),
        ("hf://org/name", HubName("org/name")),
        ("hf://org/name@main/loras/maths", HubName("org/name", "main", "loras/maths")),
        ("hf://org/name/loras/maths/", HubName("org/name", None, "loras/maths")),
        ("./Qwen/Qwen2.5-0.5B", None),
        ("../Qwen/base", None),
        ("/models/base", None),
        ("base", None),
        ("models/loras/maths", None),
        ("experts/maths", None),
        ("models/missing", None),
        ("", None),
        ("C:\\models", None),
        ("~/models", None),
        ("a b/c", None),
    ],
)
def test_what_a_reference_names(tmp_path: Path, reference: str, named: HubName | None) -> None:
    (tmp_path / "experts/maths").mkdir(parents=True)
    (tmp_path / "models").mkdir()
    assert hub_name(reference, tmp_path) == named


def test_a_folder_of_the_name_wins_unless_the_hub_is_meant(tmp_path: Path) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    assert hub_name("org/name", tmp_path) is None
    assert hub_name("hf://org/name", tmp_path) == HubName("org/name")


@pytest.mark.parametrize("reference", ["hf://", "hf://name", "hf://org/", "hf://org/name/../../etc", "hf:///x/y"])
def test_what_the_scheme_cannot_name_is_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(UserError, match="names nothing on the Hub"):
        hub_name(reference, tmp_path)
