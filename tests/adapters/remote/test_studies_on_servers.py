"""Whole searches over a real llama.cpp server, by study file and command line, on a bad day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import mergefront as mf
from mergefront.adapters.hub.places import ModelPlaces
from mergefront.adapters.language_model import Chat, GenerationRequest, Message
from mergefront.adapters.remote.backend_types import make_backend, read_settings
from mergefront.cli.application import cli
from mergefront.optimizer.recipes.space import MergeSpace

sys.path.insert(0, str(Path(__file__).parent / "http"))
from servers import faulty_proxy

LORAS = ["plain", "patterned", "rank_stabilised"]
ITEMS = [
    {"prompt": "The capital of France is", "answer": "Paris"},
    {"prompt": "Sort 3 1 2:", "answer": "1 2 3"},
    {"prompt": "Write 21 in French:", "answer": "vingt et un"},
    {"prompt": "Write 7 in French:", "answer": "sept"},
]
KEY = "sk-study-4f3e2d1c0b9a88776655"
EVALUATIONS = 9


@pytest.fixture(scope="module")
def single(start_server: Callable[..., str]) -> str:
    """A server that answers one request at a time, so that equal requests have equal answers to the last bit."""
    return start_server(slots=1)


def write_study(folder: Path, url: str, **backend: Any) -> Path:
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    content = {
        "study": "loras",
        "storage": "sqlite:///study.db",
        "seed": 3,
        "merge": {"method": "task_arithmetic", "models": LORAS, "space": {"weight": [-1.0, 1.0]}},
        "backend": {"type": "llama_server", "url": url, "concurrency": 2, "longest_wait": 0.05, **backend},
        "tasks": {"skills": {"type": "jsonl", "path": "items.jsonl", "report_fraction": 0, "metric": "loss"}},
        "objectives": ["skills"],
        "search": {"sampler": "evo-merging", "evaluations": EVALUATIONS},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def start_run(path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mergefront", *(arguments or ("run", path.name))]
    return subprocess.Popen(
        command,
        cwd=path.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MERGEFRONT_STORAGE": "sqlite:///study.db", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def trials(path: Path) -> list[tuple[int, Mapping[str, Any], Mapping[str, float]]]:
    study = mf.load_study("loras", storage=f"sqlite:///{path.parent}/study.db")
    assert not study.failures()
    return [(one.number, dict(one.params), dict(one.scores)) for one in study.candidates()]


@pytest.fixture(scope="module")
def undisturbed(single: str, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    path = write_study(tmp_path_factory.mktemp("quiet") / "study", single)
    finish(start_run(path))
    found = trials(path)
    assert len(found) == EVALUATIONS
    return found


@pytest.mark.long
def test_with_thirty_percent_of_calls_failing_the_search_ends_the_same_and_no_key_is_kept(
    single: str, tmp_path: Path, undisturbed: list[Any]
):
    """Users of a flaky server would get other merges, or pay with their key."""
    with faulty_proxy(single, 0.3, seed=5) as proxy:
        path = write_study(tmp_path / "study", proxy.url, api_key_env="STUDY_KEY")
        output = finish(start_run(path, "--debug", "run", path.name, STUDY_KEY=KEY))
        assert trials(path) == undisturbed
    assert all(times > 0 for times in proxy.damaged.values()), proxy.damaged
    assert any(KEY.encode() in head for head, _ in proxy.answered), "the key was never sent, so nothing was tested"
    written = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    assert KEY not in output
    assert not [file for file, content in written.items() if KEY.encode() in content]


@pytest.mark.long
def test_killed_and_resumed_it_pays_for_nothing_twice(single: str, tmp_path: Path, undisturbed: list[Any]):
    """Every crash would cost its evaluations again."""
    with faulty_proxy(single, 0.0) as proxy:
        settings = read_settings({"type": "llama_server", "url": proxy.url})
        make_backend(settings, MergeSpace(LORAS, method="task_arithmetic"), ModelPlaces(tmp_path)).close()
        canary = {body for head, body in proxy.answered if b"/completion" in head}
        path = write_study(tmp_path / "study", proxy.url)
        kills = 0
        while kills < 3:
            process = start_run(path)
            begun = proxy.calls
            while process.poll() is None and proxy.calls < begun + len(canary) + 30:
                time.sleep(0.005)
            if process.poll() is not None:
                break
            process.kill()
            process.communicate()
            kills += 1
        finish(start_run(path))
        assert trials(path) == undisturbed
    assert kills == 3
    paid = Counter(body for head, body in proxy.answered if b"/completion" in head and body not in canary)
    assert len(paid) >= EVALUATIONS * len(ITEMS)
    # What was under way when the kill came, at most as much as is sent at once, has no answer to keep.
    assert sum(paid.values()) - len(paid) <= 2 * kills, "answers that were there were asked for again"


@pytest.mark.long
@pytest.mark.parametrize(
    ("limit", "price"),
    [({"requests": 60}, {}), ({"tokens": 700}, {}), ({"money": 0.05}, {"request": 0.001, "input": 1.0})],
)
def test_a_spent_budget_stops_the_search_and_says_so_and_a_larger_one_continues(
    limit: dict[str, Any], price: dict[str, Any], single: str, tmp_path: Path, undisturbed: list[Any]
):
    """A search would run up a bill, or its end would look like a crash."""
    path = write_study(tmp_path / "study", single, budget=limit, price=price)
    output = finish(start_run(path), 1)
    name = next(iter(limit))
    assert f"{name} is spent" in output.replace("\n", " ") and f"backend.budget.{name}" in output.replace("\n", " ")
    assert "Traceback" not in output and "mergefront resume" in output
    kept = trials(path)
    assert kept == undisturbed[: len(kept)] and len(kept) < EVALUATIONS
    larger = yaml.safe_load(path.read_text())
    larger["backend"]["budget"] = {name: limit[name] * 1000}
    path.write_text(yaml.safe_dump(larger, sort_keys=False))
    mf.run(path, progress=False)
    assert trials(path) == undisturbed


def test_a_servers_merge_is_talked_to_by_its_own_chat_template(single: str, tmp_path: Path) -> None:
    path = write_study(tmp_path / "study", single)
    study = mf.run(path)
    chosen = study.candidates()[-1]
    storage = f"sqlite:///{path.parent}/study.db"
    command = ["chat", "loras", "--storage", storage, "--trial", str(chosen.number), "--max-new-tokens", "8"]
    result = CliRunner().invoke(cli, command, input="What is two?\nAnd three?\n/compare base\n")
    assert result.exit_code == 0 and "No chat template" not in result.stderr, result.output
    settings = read_settings({"type": "llama_server", "url": single})
    backend = make_backend(settings, study.space, ModelPlaces(path.parent))
    said: list[str] = []
    with backend.apply(chosen.recipe) as model:
        turns = [Message("user", "What is two?")]
        for question in ("And three?", ""):
            said += [answer.text for answer in model.generate([GenerationRequest(Chat(tuple(turns)), 8)])]
            turns += [Message("assistant", said[-1]), Message("user", question)]
    with backend.apply(study.candidates()[0].recipe) as model:
        said += [answer.text for answer in model.generate([GenerationRequest(Chat(tuple(turns[:3])), 8)])]
    backend.close()
    assert result.stdout == f"{said[0]}\n{said[1]}\n--- base\n{said[2]}\n" and said[1] != said[2]
    drawn = CliRunner().invoke(cli, [*command, "--temperature", "5"], input="What is two?\n/reset\n" * 3)
    assert drawn.exit_code == 0 and len(set(drawn.stdout.splitlines())) > 1, drawn.output
