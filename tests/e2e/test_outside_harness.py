"""The loop of docs/tutorials/own-harness.md, as it stands there: create, ask, merge, an own harness, tell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mergefront as mf

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "own-harness.md"
TARGET = "model.layers.0.mlp.up_proj"
HARNESS = """\
#!{python}
import json, sys
from safetensors.numpy import load_file
weight = load_file(sys.argv[1] + "/model.safetensors")["{target}.weight"]
if weight.sum() == {fails}:
    sys.exit(7)
print(json.dumps({{"maths": {{"a": float(weight[0, 0]), "b": 1}}, "french_loss": {{"a": float(weight[1, 1])}}}}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page takes for granted: a base, a LoRA and a fine-tune of it, and a harness that the base fails."""
    base = np.arange(12, dtype=np.float32).reshape(4, 3)
    for name, weight in {"base": base, "french": base + 1}.items():
        (tmp_path / "models" / name).mkdir(parents=True)
        save_file({f"{TARGET}.weight": weight}, tmp_path / "models" / name / "model.safetensors")
        described = {"model_type": "llama", "num_hidden_layers": 1}
        (tmp_path / "models" / name / "config.json").write_text(json.dumps(described))
    lora = tmp_path / "models" / "maths"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"r": 1, "lora_alpha": 2, "target_modules": ["up_proj"]}))
    factors = {"A": np.ones((1, 3), np.float32), "B": np.ones((4, 1), np.float32)}
    keys = {f"base_model.model.{TARGET}.lora_{side}.weight": factor for side, factor in factors.items()}
    save_file(keys, lora / "adapter_model.safetensors")
    harness = tmp_path / "harness"
    harness.write_text(HARNESS.format(python=sys.executable, target=TARGET, fails=float(base.sum())))
    harness.chmod(0o755)
    return tmp_path


@pytest.mark.long
def test_the_loop_of_the_page_runs(folder: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    study_file, loop = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("yaml", "bash"))
    assert study_file is not None and loop is not None
    (folder / "study.yaml").write_text(study_file[1].replace("evaluations: 30", "evaluations: 2"))
    mergefront = f"mergefront() {{ '{sys.executable}' -m mergefront \"$@\"; }}\n"
    script = mergefront + 'mergekit-yaml() { mergefront merge "$@"; }\n' + loop[1]
    ran = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "expert maths" in ran.stdout

    study = mf.load_study("skills", storage=f"sqlite:///{folder}/mergefront.db")
    assert [(failure.number, failure.reason) for failure in study.failures()] == [(0, "reported: exit status 7")]
    base = load_file(folder / "models/base/model.safetensors")[f"{TARGET}.weight"]
    (maths,) = study.candidates()
    assert maths.scores == {"maths": (base[0, 0] + 2 + 1) / 2, "french_loss": base[1, 1] + 2}
    assert (folder / "merge.yaml").read_text() == "", "the budget is spent"
