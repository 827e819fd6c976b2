"""Users of an API install no model library: nothing on their way imports one, up to the sampler that needs torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import Answer, Received, as_json, serve

RUN = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import json
from mergefront.cli.application import cli
for command in json.loads(sys.argv[1]):
    print({mark!r})
    assert cli.main(command, standalone_mode=False) == 0, command
    assert not set({refused!r}) & set(sys.modules), command
"""
MARK = "=== the next command ==="
MODEL_LIBRARIES = ("torch", "transformers", "peft", "botorch", "gpytorch", "tokenizers", "xllamacpp", "gguf")


def provider(request: Received) -> Answer:
    """All protocols at once, as far as a study needs them."""
    body = request.json if request.body else None
    if request.path == "/v1/sessions":
        return as_json({"session_id": "s", "models": ["a", "b", "c"], "pool_digest": "d"})
    if request.path.endswith("/generate"):
        weight = sum(body["recipe"]["params"].values())
        return as_json({"answers": [{"text": "yes" if weight > 1 else "no", "tokens": 1, "finish": "stop"}
                                    for _ in body["requests"]]})  # fmt: skip
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    if request.path.endswith("/chat/completions"):
        text = "yes" if body["model"] != "b" else "no"
        return as_json({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage})
    return as_json({"error": "unknown"}, 404)


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "backend",
    [
        {"type": "merge_service", "pool": "p"},
        {"type": "ensemble", "members": {name: {"model": name} for name in "abc"}},
    ],
)
def test_a_whole_search_over_an_api_needs_no_model_library(backend: dict[str, Any], tmp_path: Path):
    """Users without weights would have to install gigabytes of libraries for them."""
    items = [{"prompt": f"Is {n} a number?", "answer": "yes"} for n in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    with serve(provider) as server:
        reached = dict(backend)
        if "members" in backend:
            reached["members"] = {name: {**one, "url": server.url} for name, one in backend["members"].items()}
        else:
            reached["url"] = server.url
        study = {
            "study": "thin",
            "merge": {"method": "task_arithmetic", "models": ["a", "b", "c"], "space": {"weight": [0, 1]}},
            "backend": reached,
            "tasks": {"yes": {"type": "jsonl", "path": "items.jsonl", "metric": "exact_match"}},
            "objectives": ["yes"],
            "search": {"sampler": "evo-merging", "evaluations": 9},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        compare = ["compare", str(path), "--methods", "task_arithmetic,lora_cat,ties", "--json"]
        commands = json.dumps([["check", str(path)], ["run", str(path)], compare])
        command = [sys.executable, "-c", RUN.format(refused=MODEL_LIBRARIES, mark=MARK), commands]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.rpartition(MARK)[2])
    labels = {row["label"] for row in found["rows"]}
    assert (
        found["study"] == "thin/compare" and {"base", "task arithmetic 1", "lora_cat"} <= labels and not found["failed"]
    )
    if backend["type"] == "ensemble":
        assert "ties" not in labels and "cannot be done by scaling whole LoRAs" in found["left_out"]["ties"]
    else:
        assert "ties" in labels
