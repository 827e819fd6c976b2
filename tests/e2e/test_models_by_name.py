"""A study whose models are names on the Hub: what is fetched, when, and at which commit it goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import Hub, hub_server
from local_study import write_local_study
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="needs the extra 'local'")

Run = Callable[..., subprocess.CompletedProcess[str]]


def published(folder: Path, hub: Hub) -> Path:
    """A study file whose base and experts, one of them a LoRA, lie on the Hub only."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = write_local_study(folder, "named")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "lora")
    for name in ("base", "one", "two", "lora"):
        (folder / name / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        hub.add(f"lab/{name}", folder / name)
        shutil.rmtree(folder / name)
    content = yaml.safe_load(path.read_text())
    content["merge"] |= {"base_model": "lab/base", "models": {"one": "lab/one", "lora": "hf://lab/lora@main"}}
    content["search"]["evaluations"] = 5
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def runner(folder: Path, hub: Hub) -> Run:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"}

    def run(*arguments: Any, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mergefront", *map(str, arguments)]
        return subprocess.run(
            command, cwd=folder, env={**environment, **more}, capture_output=True, text=True, timeout=600
        )

    return run


@pytest.mark.long
def test_a_study_of_models_by_name_keeps_their_commits(tmp_path: Path) -> None:
    """Without: every user downloads by hand, and a resumed study mixes scores of two versions of a model."""
    with hub_server() as hub:
        study, run = published(tmp_path, hub), runner(tmp_path, hub)
        first = {name: repository.shas()[-1] for name, repository in hub.repositories.items()}

        checked = run("check", study)
        assert checked.returncode == 0, checked.stderr
        assert "a run fetches" in checked.stdout and "lab/base (" in checked.stdout
        weights = sum(len(files["model.safetensors"]) for files in hub.repositories["lab/base"].commits)
        assert hub.sent("model.safetensors") < weights

        ran = run("run", study)
        assert ran.returncode == 0, ran.stderr
        told = len(hub.requests)
        assert hub.sent("model.safetensors") > weights

        # The base's author pushes new weights; the study goes on with those that it was begun with.
        base = Path(next((tmp_path / "home").rglob(f"models--lab--base/snapshots/{first['lab/base']}")))
        shutil.copytree(base, tmp_path / "pushed")
        new = {name: tensor * 2 for name, tensor in load_file(base / "model.safetensors").items()}
        save_file(new, tmp_path / "pushed/model.safetensors", metadata={"format": "pt"})
        hub.add("lab/base", tmp_path / "pushed")
        more = run("run", study, "--evaluations", 6)
        assert more.returncode == 0, more.stderr
        assert not [path for _, path, _ in hub.requests[told:] if path.endswith(".safetensors")]

        exported = run("export", "named", "--trial", 4, "--out", "merged", HF_HUB_OFFLINE="1")
        assert exported.returncode == 0, exported.stderr
        config = yaml.safe_load((tmp_path / "merged/mergekit_config.yml").read_text())
        assert config["base_model"] == f"lab/base@{first['lab/base']}"
        assert {entry["model"] for entry in config["models"]} == {
            f"lab/one@{first['lab/one']}",
            f"lab/base@{first['lab/base']}+lab/lora@{first['lab/lora']}",
        }
        assert "base_model:\n- lab/base\n- lab/one\n- lab/lora\n" in (tmp_path / "merged/README.md").read_text()

        again = run("merge", "merged/mergekit_config.yml", "again", HF_HUB_OFFLINE="1")
        assert again.returncode == 0, again.stderr
        merged, remade = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "again"))
        assert merged.keys() == remade.keys() and all((merged[name] == remade[name]).all() for name in merged)


def test_what_cannot_be_had_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    with hub_server() as hub:
        study, run = published(tmp_path, hub), runner(tmp_path, hub)
        text = study.read_text()
        (tmp_path / "models").mkdir()
        hub.repositories["lab/one"].gated = True
        models = {"one": "lab/one", "two": "lab/two@v9", "three": "models/three"}
        content = yaml.safe_load(text)
        content["merge"] |= {"base_model": "lab/nothing", "models": models}
        study.write_text(yaml.safe_dump(content))
        checked = run("check", study)
        assert checked.returncode == 2 and "Traceback" not in checked.stderr
        for said in (
            "merge.base_model: lab/nothing: there is no such folder, and no such repository on the Hub;",
            "merge.models.one: lab/one is gated: accept its terms at",
            "merge.models.two: lab/two@v9: the repository has no revision 'v9'",
            "models/three: there is no such file or folder (paths are relative to the study file)",
        ):
            assert said in " ".join(checked.stderr.split())
        study.write_text(text)
        offline = run("run", study, HF_HUB_OFFLINE="1")
        assert offline.returncode == 2
        said = " ".join(offline.stderr.split())
        assert "lab/base is no folder here and not in the Hub's cache" in said and "hf download lab/base" in said
        assert not list(tmp_path.glob("*.db"))
