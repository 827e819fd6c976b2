"""The first page of the project does what it says: its study file, its commands and its Python run as they stand."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from hub_server import hub_of_this_process
from local_study import write_local_study
from page_blocks import ROOT, blocks

from mergefront.cli.application import cli

pytest.importorskip("transformers", reason="needs the extra 'local'")


def test_the_study_file_and_the_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny models under the names on the Hub, and a smaller budget."""
    monkeypatch.chdir(tmp_path)
    (study,) = blocks("README.md", "yaml")
    Path("study.yaml").write_text(study.replace("evaluations: 30", "evaluations: 5"))
    for name, item in {
        "maths": {"prompt": "{0} + 4 =", "answer": "7"},
        "facts": {"prompt": "{0} is", "choices": ["abc", "cab"], "answer": 1},
    }.items():
        lines = [json.dumps(item).replace("{0}", str(number)) for number in range(6)]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    write_local_study(tmp_path / "tiny", "unused")
    commands = [line.split("#")[0] for block in blocks("README.md", "bash") for line in block.splitlines()]
    with hub_of_this_process(tmp_path, monkeypatch) as hub:
        for name, folder in {"1.5B": "base", "1.5B-Instruct": "one", "Coder-1.5B": "two"}.items():
            hub.add(f"Qwen/Qwen2.5-{name}", tmp_path / "tiny" / folder)
        ran = []
        for program, *arguments in filter(None, map(shlex.split, commands)):
            if program == "make":
                continue  # the demo and the suite have tests and CI of their own
            assert program == "mergefront"
            done = CliRunner().invoke(cli, arguments)
            assert done.exit_code == 0, f"{arguments}: {done.output}"
            ran.append(arguments[0])
    assert ran == ["check", "run", "front", "report", "export"]
    assert Path("front.html").exists() and Path("report.html").exists()
    assert Path("merged/model.safetensors").exists() and Path("merged/README.md").exists()


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    harness = ModuleType("my_harness")
    harness.__dict__["score"] = lambda recipe: {
        "maths": recipe.params.get("weight[chat]", 0.0), "facts": recipe.params.get("weight[code]", 0.0)
    }  # fmt: skip

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        chat, code = trial.suggest_float("chat", 0, 1), trial.suggest_float("code", 0, 1)
        return chat * (1 - code / 2), code * (1 - chat / 2)

    harness.__dict__["objective"] = objective
    monkeypatch.setitem(sys.modules, "my_harness", harness)
    search, sampler = blocks("README.md", "python")
    exec(compile(search.replace("evaluations=30", "evaluations=7"), "README.md", "exec"), {})
    assert "'maths'" in capsys.readouterr().out
    assert "n_trials=30" in sampler
    names: dict[str, Any] = {}
    exec(compile(sampler.replace("n_trials=30", "n_trials=7"), "README.md", "exec"), names)
    assert [trial.params for trial in names["study"].trials][:2] == [{"chat": 1, "code": 0}, {"chat": 0, "code": 1}]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    """Those of the site are held by make docs."""
    links = re.findall(r"\]\(([^)\s#]+)", (ROOT / page).read_text(encoding="utf-8"))
    # What begins so is GitHub's own, two folders above the repository's files.
    missing = [one for one in links if not re.match(r"https?:|\.\./\.\./", one) and not (ROOT / one).exists()]
    assert not missing
