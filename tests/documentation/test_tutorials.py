"""Every shell and Python block of the tutorials runs as it stands, or says why it was not run.

docs/tutorials/first-search.md and own-harness.md have end-to-end tests of their own for their commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from local_study import write_local_study
from page_blocks import ROOT, blocks

import mergefront as mf
from mergefront.cli.application import cli

pytest.importorskip("transformers", reason="needs the extra 'local'")


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with the programs ``mergefront`` and ``python`` of this environment."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name, module in (("mergefront", "-m mergefront"), ("python", "")):
        (programs / name).write_text(f"#!/bin/sh\nexec '{sys.executable}' {module} \"$@\"\n")
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_tutorial_has_a_test() -> None:
    tested = {"first-search", "own-harness", "many-machines", "loras-behind-an-api"}
    assert {path.stem for path in (ROOT / "docs" / "tutorials").glob("*.md")} == tested


def test_the_loop_in_python_of_an_own_harness_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = "docs/tutorials/own-harness.md"
    content = yaml.safe_load(blocks(page, "yaml")[0])
    content["search"]["evaluations"] = 5
    content["merge"]["models"] = {"maths": "lab/maths", "french": "lab/french"}
    content["merge"]["base_model"] = "lab/base"
    Path("study.yaml").write_text(yaml.safe_dump(content))
    tell = blocks(page, "bash")[1]
    for line in ("mergefront create study.yaml", "mergefront ask skills", tell.replace(" 7 ", " 0 ")):
        done = CliRunner().invoke(cli, line.split()[1:])
        assert done.exit_code == 0, done.output
    told = []

    def my_scores(recipe: mf.Recipe) -> dict[str, float]:
        if len(told) == 1:
            told.append(recipe)
            raise RuntimeError("out of disk")
        told.append(recipe)
        return {"maths": 0.5, "french_loss": 2.0 + len(told)}

    (program,) = blocks(page, "python")
    exec(compile(program, page, "exec"), {"my_scores": my_scores})
    study = mf.load_study("skills")
    assert [failure.reason for failure in study.failures()] == ["reported: out of disk"]
    assert len(study.candidates()) == len(told) == 4
    assert study.candidates()[0].scores == {"maths": 0.61, "french_loss": 2.31}


@pytest.mark.long
def test_one_machine_and_the_script_for_slurm_run(tmp_path: Path) -> None:
    """The script is a shell script whose settings for Slurm are comments: here it runs without Slurm."""
    content = yaml.safe_load(write_local_study(tmp_path, "skills").read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    machine, script = blocks("docs/tutorials/many-machines.md", "bash")
    assert "7 of 7" in shell(machine, tmp_path).stdout
    again = content | {"study": "on-slurm"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(again))
    shell("mergefront create study.yaml", tmp_path)
    here = {
        "source /shared/mergefront/.venv/bin/activate": "",
        "postgresql+psycopg://merger@db/merges": "sqlite:///mergefront.db",
        "worker skills --device cuda": "worker on-slurm --device cpu",
    }
    for written, meant in here.items():
        assert written in script
        script = script.replace(written, meant)
    (tmp_path / "search.sbatch").write_text(script)
    log = shell("bash search.sbatch", tmp_path, SLURM_CPUS_PER_TASK="1").stderr
    assert log.count('"event": "trial"') == 7


@pytest.mark.long
def test_loras_behind_an_api_are_searched(tmp_path: Path) -> None:
    """With real LoRAs on a real llama.cpp server; its port is any free one, and the budget smaller."""
    pytest.importorskip("xllamacpp", reason="needs the extra 'llama-cpp'")
    from ports import free_port

    page, port = "docs/tutorials/loras-behind-an-api.md", str(free_port())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "pool").mkdir()
    (study,) = blocks(page, "yaml")
    study = study.replace("8190", port).replace("evaluations: 12", "evaluations: 5").replace("items: 8", "items: 3")
    (tmp_path / "pool" / "study.yaml").write_text(study)
    script = "\n".join(blocks(page, "bash")).replace("8190", port)
    said = shell(f"trap 'kill $server' EXIT\n{script}\ntrap - EXIT", tmp_path)
    assert "finnish" in said.stdout and "french" in said.stdout
