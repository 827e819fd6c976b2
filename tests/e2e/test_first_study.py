"""The first study file of any user: models, a benchmark and a chat template, all by their names on the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES, chat_tokenizer
from hub_server import hub_server
from tiny_models import move

pytest.importorskip("lm_eval")

STUDY = """\
study: first
merge:
  method: task_arithmetic
  base_model: Qwen/Qwen2.5-0.5B
  models: {maths: lab/maths, chat: lab/chat}
  space: {weight: [0, 1]}
tasks: {gsm8k: {type: lm_eval, task: gsm8k, num_fewshot: 5, apply_chat_template: true}}
objectives: [gsm8k]
search: {evaluations: 6}
"""
CARD = """\
---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: test, path: main/test.jsonl}]
---
"""


PROGRAM = """
import json, sys
import datasets, huggingface_hub
import mergefront as mf
from mergefront.adapters.tasks.task_types import problems_of
from mergefront.study.check import check_study
from pathlib import Path

path = Path(sys.argv[1])
report = check_study(path)
assert not report.problems, report.problems
trials = [len(mf.run(path, progress=False).optuna.trials)]
# With what is in the caches by now a study goes on without a network; what is not there has its command.
datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
path.write_text(path.read_text().replace("evaluations: 6", "evaluations: 7"))
trials.append(len(mf.run(path, progress=False).optuna.trials))
path.write_text(path.read_text().replace("apply_chat_template: true", "gen_kwargs: {max_gen_toks: 4096}"))
told = {
    "endless": check_study(path).problems[0],
    "notes": report.notes,
    "trials": trials,
    "problem": problems_of({"type": "lm_eval", "task": "arc_easy"}, path.parent)[0],
}
print(json.dumps(told))
"""


@pytest.mark.long
def test_it_runs_as_written(tmp_path: Path, random_model: Callable[..., Any]) -> None:
    tokenizer = chat_tokenizer(FAMILIES["qwen 2.5"])
    model = random_model("Qwen2", vocab_size=len(tokenizer), max_position_embeddings=2048)
    model.generation_config.max_length = 2048
    with hub_server() as hub:
        for seed, name in enumerate(("Qwen/Qwen2.5-0.5B", "lab/maths", "lab/chat")):
            move(model, seed, 0.1 * seed)
            model.save_pretrained(tmp_path / name)
            tokenizer.save_pretrained(tmp_path / name)
            hub.add(name, tmp_path / name)
        data = tmp_path / "data"
        (data / "main").mkdir(parents=True)
        (data / "README.md").write_text(CARD)
        for split, start in (("train", 50), ("test", 0)):
            rows = [{"question": f"Two and {n}?", "answer": f"#### {n + 2}"} for n in range(start, start + 6)]
            (data / f"main/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        hub.add("datasets/openai/gsm8k", data)
        study = tmp_path / "study/study.yaml"
        study.parent.mkdir()
        study.write_text(STUDY)
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", PROGRAM, str(study)]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout.splitlines()[-1])
    checked = " ".join(told["notes"])
    assert "scored by exact_match (metric: there are also exact_match,strict-match, exact_match,flexible" in checked
    assert "<|im_start|>assistant" in checked and "a run fetches" in checked
    assert told["endless"].startswith("tasks.gsm8k: max_gen_toks (gen_kwargs) is 4096, but the base model takes 2048")
    assert told["trials"] == [6, 7]
    assert "lm-eval run --model dummy --limit 1 --tasks arc_easy" in told["problem"]
