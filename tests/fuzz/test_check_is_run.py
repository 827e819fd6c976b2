"""What check accepts, create and run accept, whatever stands in the file; what they refuse leaves no database."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import mergefront as mf
from mergefront.cli.application import cli

sys.path.insert(0, str(Path(__file__).parent))
from malformed import broken_mappings

STUDY: dict[str, Any] = {
    "study": "skills",
    "seed": 1,
    "merge": {
        "method": ["ties", "linear"],
        "base_model": "models/base",
        "models": {"maths": "models/maths", "french": "models/french"},
        "space": {"weight": [0, 1], "density": [0.1, 1]},
        "tokenizer_source": "union",
    },
    "backend": {"type": "external"},
    "objectives": ["maths", {"name": "loss", "direction": "minimize", "range": [9, 1]}],
    "constraints": ["tokens <= 3", {"name": "maths", "at_least": 0.1}],
    "search": {"sampler": "random", "evaluations": 7},
    "warm_start": [],
}
VALUES = (
    float("nan"),
    float("inf"),
    2**70,
    -1,
    "",
    "nul\0inside",
    "\ud800",
    " spaced ",
    "x" * 300,
    "\u202e",
    {"unknown": 1},
    [[]],
)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli, list(arguments))


@pytest.mark.long
def test_what_check_accepts_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    accepted = refused = 0
    for name, content in broken_mappings(STUDY, VALUES):
        Path("study.yaml").write_text(yaml.safe_dump(content))
        checked, made = call("check", "study.yaml"), call("create", "study.yaml")
        told = f"{name}: check {checked.exit_code}, create {made.exit_code}\n{checked.stderr}\n{made.stderr}"
        assert checked.exit_code == made.exit_code and made.exit_code in (0, 2), told
        assert Path("mergefront.db").exists() == (made.exit_code == 0), told
        accepted, refused = accepted + (made.exit_code == 0), refused + (made.exit_code == 2)
        for file in Path().glob("mergefront.db*"):
            file.unlink()
    assert accepted > 20 and refused > 100


@pytest.mark.parametrize("ending", ["import sys; sys.exit(0)", "raise SystemExit", "1 / 0", "class E(Exception):\n"
    "    def __str__(self): raise ValueError\nraise E"])  # fmt: skip
def test_code_that_ends_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """``sys.exit(0)`` in a user's file ended check and run with status 0 and not a word."""
    monkeypatch.chdir(tmp_path)
    Path("ending_code.py").write_text(ending + "\n")
    study: dict[str, Any] = copy.deepcopy(STUDY)
    study["merge"]["method_files"] = ["ending_code.py"]
    study["backend"] = {"type": "function", "call": "ending_code:score"}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    for command in ("check", "run"):
        result = call(command, "study.yaml")
        assert result.exit_code == 2 and not Path("mergefront.db").exists()
        assert "merge.method_files: method file" in result.stderr and "importing 'ending_code' failed" in result.stderr


def test_a_study_of_optunas_own_is_no_study_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump({**STUDY, "study": "other"}))
    made = mf.create("study.yaml")
    import optuna

    optuna.create_study(study_name="skills", storage=made.database.optuna_storage)
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    for command in ("check", "create"):
        result = call(command, "study.yaml")
        assert result.exit_code == 2 and "was not made by mergefront" in result.stderr
