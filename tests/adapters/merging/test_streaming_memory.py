"""A checkpoint larger than memory merges: a merge to a folder holds a few tensors, whatever the size of the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mergefront.optimizer.recipes.methods import METHODS

LAYERS, ROWS, COLUMNS = 10, 4096, 2048
LARGEST = ROWS * COLUMNS * 4
"""Bytes of the largest tensor in float32, the unit of what docs/explanation/memory.md states."""

PROGRAM = """
import json, sys, threading, time
from pathlib import Path
import torch
from mergefront.adapters.merging.output.directory import merge_to_directory

def anonymous():  # memory that is this process's own: pages of mapped files can be dropped and do not count
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

folder, content = Path(sys.argv[1]), json.loads(sys.argv[2])
small = json.loads(json.dumps(content).replace('"one"', '"small_one"').replace('"two"', '"small_two"'))
merge_to_directory(json.loads(json.dumps(small).replace('"base"', '"small"')), folder / "warm", folder)
before, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
merge_to_directory(content, folder / "out", folder)
done.set(); watcher.join()
print(json.dumps({"own": peak[0] - before}))
"""


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "parameters", "tensors"),
    [
        ("task_arithmetic", {"weight": 0.4}, 3),
        ("ties", {"weight": 0.4, "density": 0.5}, 3),
        ("dare_ties", {"weight": 0.4, "density": 0.5}, 3),
        ("della", {"weight": 0.4, "density": 0.5}, 4),
        ("linear", {"weight": 0.4}, 3),
        ("sce", {}, 14),
    ],
)
def test_own_memory_is_a_stated_number_of_the_largest_tensor(
    checkpoints: Path, tmp_path: Path, method: str, parameters: dict[str, float], tensors: int
) -> None:
    """``tensors`` is what docs/explanation/memory.md states for two experts; three checkpoints in bfloat16 take 15."""
    models = [{"model": name, "parameters": parameters} for name in ("one", "two")]
    content = {"merge_method": method, "models": models}
    if METHODS[method].needs_base:
        content["base_model"] = "base"
    for name in ("base", "one", "two", "small", "small_one", "small_two"):
        (tmp_path / name).symlink_to(checkpoints / name)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), json.dumps(content)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    own = json.loads(done.stdout.splitlines()[-1])["own"]
    print(f"{method}: {own / LARGEST:.2f} of the largest tensor in float32")
    assert own <= tensors * LARGEST
