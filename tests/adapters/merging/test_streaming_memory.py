"""A checkpoint larger than memory merges: a merge to a folder holds a few tensors, whatever the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mergefront.optimizer.recipes.methods import METHODS

LAYERS, ROWS, COLUMNS = 10, 4096, 2048
LARGEST = ROWS * COLUMNS * 4
"""Bytes of the largest tensor in float32, the unit of what docs/explanation/memory.md states."""

PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
from mergefront.adapters.merging.output.directory import merge_to_directory

def anonymous():  # memory that is this process's own: pages of mapped files can be dropped and do not count
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

def own(name, content, folder):
    small = json.loads(json.dumps(content).replace('"one"', '"small_one"').replace('"two"', '"small_two"'))
    merge_to_directory(json.loads(json.dumps(small).replace('"base"', '"small"')), folder / f"{name} warm", folder)
    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    merge_to_directory(content, folder / name, folder)
    done.set(); watcher.join()
    return peak[0] - before

for name, content in json.loads(sys.argv[2]).items():
    child = os.fork()  # what one merge leaves in memory is not the next one's
    if not child:
        print(json.dumps({name: own(name, content, Path(sys.argv[1]))}), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""
METHODS_TRIED: dict[str, tuple[dict[str, float], int]] = {
    "task_arithmetic": ({"weight": 0.4}, 3),
    "ties": ({"weight": 0.4, "density": 0.5}, 3),
    "dare_ties": ({"weight": 0.4, "density": 0.5}, 3),
    "della": ({"weight": 0.4, "density": 0.5}, 4),
    "linear": ({"weight": 0.4}, 3),
    "sce": ({}, 14),
}
"""Their parameters, and what docs/explanation/memory.md states for two experts in largest tensors."""


def write(folder: Path, layers: int, rows: int, columns: int, seed: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(rows, columns, generator=generator).bfloat16()
        for layer in range(layers)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two experts of 168 MB each, and small ones to load libraries with."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process its own memory")
    folder = tmp_path_factory.mktemp("streaming")
    for seed, name in enumerate(("base", "one", "two")):
        write(folder / name, LAYERS, ROWS, COLUMNS, seed)
        write(folder / ("small" if name == "base" else f"small_{name}"), 1, 64, 64, seed)
    return folder


def content(method: str) -> dict[str, Any]:
    parameters, _ = METHODS_TRIED[method]
    models = [{"model": name, "parameters": parameters} for name in ("one", "two")]
    base = {"base_model": "base"} if METHODS[method].needs_base else {}
    return {"merge_method": method, "models": models, **base}


@pytest.mark.long
def test_own_memory_is_a_stated_number_of_the_largest_tensor(checkpoints: Path) -> None:
    """Three checkpoints in bfloat16 take 15."""
    contents = json.dumps({method: content(method) for method in METHODS_TRIED})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(checkpoints), contents], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    own = {name: held for line in done.stdout.splitlines() for name, held in json.loads(line).items()}
    assert own.keys() == METHODS_TRIED.keys()
    for method, (_, tensors) in METHODS_TRIED.items():
        print(f"{method}: {own[method] / LARGEST:.2f} of the largest tensor in float32")
        assert own[method] <= tensors * LARGEST, method
