"""A merge's time and memory where the weights do not fit: held, partly streamed and wholly streamed, in one run each.

    python benchmarks/merge_memory.py FOLDER [--methods ties ...] [--rooms 0 5GB 100GB] [--model Llama-3.2-1B]

Writes a random bf16 base and three experts in a known model's shapes into FOLDER once (10 GB for Llama-3.2-1B; to be
deleted afterwards). Of every method and room a process of its own measures the first and three later candidates, in
seconds and in seconds of processor time; the peak of memory that is its own (mapped files not counted), as a share of
the weights that have to be held (the live model and what the room takes); and a plain copy of as many bytes as a
candidate reads.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from merge_speed import EXPERTS, MODELS, Model, machine, params
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.adapters.merging.offload.placement import memory_limits
from mergefront.optimizer.recipes.recipe import Recipe

CPU = torch.device("cpu")


def write(model: Model, folder: Path) -> None:
    """Every tensor repeats a million random numbers: an expert differs from the base by them, shifted."""
    for at, name in enumerate(("base", *EXPERTS)):
        if (folder / name / "model.safetensors").exists():
            continue
        tensors = {}
        for number, (key, shape) in enumerate(model.shapes()):
            size = math.prod(shape)
            block = torch.randn(min(1 << 20, size), generator=torch.Generator().manual_seed(number))
            values = (block * 0.02).bfloat16().float() + (0.002 * block.roll(7919 * at) if at else 0)
            tensors[key] = values.bfloat16().repeat(-(-size // len(block)))[:size].view(shape)
        (folder / name).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(model.config()))


def own_memory() -> int:
    """Bytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def watched() -> Callable[[], int]:
    """The most memory from now on until the function that this returns is called."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()

    def ended() -> int:
        done.set()
        watcher.join()
        return peak[0]

    return ended


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and of processor time."""
    begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    now = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter() - begun, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def measure(model: Model, folder: Path, method: str, room: str) -> dict[str, object]:
    before, peak, rng = own_memory(), watched(), random.Random(1)
    limits = memory_limits(room, [CPU])
    engine = MergeEngine(folder / "base", {name: folder / name for name in EXPERTS}, max_memory=limits)
    live = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in model.shapes()}
    weights = sum(tensor.nbytes for tensor in live.values())
    recipes = [Recipe(method, {name: name for name in EXPERTS}, params(method, rng), "base") for _ in range(4)]
    first, *later = [seconds(lambda recipe=recipe: engine.merge_into(recipe, live)) for recipe in recipes]
    held, most = engine.placement.on("device") + weights, peak() - before
    source, target = torch.ones(1 << 28, dtype=torch.uint8), torch.zeros(1 << 28, dtype=torch.uint8)
    share = (1 + len(EXPERTS)) * weights / source.numel()
    copied = min((seconds(lambda: target.copy_(source)) for _ in range(3)), key=lambda taken: taken[1])
    best = min(later, key=lambda taken: taken[1])
    return {
        "method": method, "held": held, "streamed": engine.placement.streamed, "first": first, "later": best,
        "copy": tuple(share * one for one in copied), "peak": most / held,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=["task_arithmetic", "ties"])
    parser.add_argument("--rooms", nargs="+", default=["100GB", "5GB", "0"])
    parser.add_argument("--model", choices=MODELS, default="Llama-3.2-1B")
    parser.add_argument("--one", action="store_true", help="measure in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(MODELS[arguments.model], arguments.folder, arguments.methods[0], arguments.rooms[0])))
        return
    write(MODELS[arguments.model], arguments.folder)
    print(machine("cpu"))
    for method in arguments.methods:
        for room in arguments.rooms:
            told = [str(arguments.folder), "--one", "--model", arguments.model, "--methods", method, "--rooms", room]
            subprocess.run([sys.executable, __file__, *told], check=True)


if __name__ == "__main__":
    main()
