"""docs/tutorials/first-search.md as a newcomer follows it: every command of the page, one after the other."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import TOKEN, hub_server
from huggingface_hub import ModelCard
from local_study import write_local_study

pytest.importorskip("transformers", reason="needs the extra 'local'")

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "first-search.md"


@pytest.mark.long
def test_every_step_of_the_page_runs(tmp_path: Path) -> None:
    """The first hour of every user."""
    steps = [
        line for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.split("\n")
    ]
    commands = [shlex.split(line) for line in steps if line]
    assert [command[1] for command in commands] == [
        "init", "check", "compare", "run", "front", "chat", "report", "export"
    ]  # fmt: skip
    models, work = tmp_path / "models", tmp_path / "work"
    models.mkdir()
    work.mkdir()
    write_local_study(models, "unused")
    for name, answers in (("sums", "37"), ("words", "ab")):
        items = [{"prompt": f"{name} {number}:", "answer": answers[number % 2]} for number in range(12)]
        (work / f"{name}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    with hub_server() as hub:
        for name, folder in (("base", "base"), ("sums", "one"), ("words", "two")):
            (models / folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
            hub.add(f"lab/{name}", models / folder)
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        said = {}
        for command in commands:
            if command[1] == "run":
                # A newcomer would have the patience.
                study = work / "study.yaml"
                study.write_text(re.sub(r"evaluations: \d+", "evaluations: 8", study.read_text()))
            done = subprocess.run(
                [sys.executable, "-m", *command],
                cwd=work,
                env=environment,
                input="sums 3:\n/compare base 2\n",
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
            said[command[1]] = done.stdout
        pushed = hub.repositories["you/sums-and-words"]
    assert pushed.private and {"model.safetensors", "config.json", "tokenizer.json"} < pushed.commits[-1].keys()
    assert said["export"].strip() == f"{hub.url}/you/sums-and-words/commit/{pushed.shas()[-1]}"
    card = ModelCard(pushed.commits[-1]["README.md"].decode())
    assert card.data.license == "mit" and card.data.base_model == ["lab/base", "lab/sums", "lab/words"]
    assert card.data.tags == ["merge", "mergekit", "mergefront"]
    assert [one.dataset_name for one in card.data.eval_results or ()] == ["sums", "words"]
    assert (work / "report.html").exists()
    # These models answer nothing right, which a newcomer has to be told.
    assert "so they cannot be compared" in " ".join(said["front"].split())
