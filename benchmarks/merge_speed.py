"""Seconds per candidate merge: the resident engine, a plain pass over memory, and mergekit, in one run.

    python benchmarks/merge_speed.py [--mergekit-python /path/to/venv/bin/python] [--repeat 5] [--out FILE.json]

Checkpoints are random bf16 tensors in the shapes of SmolLM2-135M (base and 3 experts). "plain pass"
reads K + 1 tensors and writes one by a single compiled addition: what memory allows. mergekit runs
as its own program, import included, because that is what a candidate costs with it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipe import Recipe

EXPERTS = ("e0", "e1", "e2")
METHODS = ("task_arithmetic", "ties", "dare_ties")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "dtype": "bfloat16",
}  # fmt: skip


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, keys = 576, 1536, 192
    yield "model.embed_tokens.weight", (49152, hidden)
    for layer in range(30):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden), ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden),
            ("self_attn.o_proj", hidden, hidden), ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):  # fmt: skip
            yield f"{prefix}{name}.weight", (rows, columns)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def checkpoints() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    base = {name: (torch.randn(shape, generator=generator) * 0.02).bfloat16() for name, shape in shapes()}
    experts = {
        expert: {
            name: (tensor.float() + 0.002 * torch.randn(tensor.shape, generator=generator)).bfloat16()
            for name, tensor in base.items()
        }
        for expert in EXPERTS
    }
    return base, experts


def params(method: str, rng: random.Random) -> dict[str, float]:
    made = {f"weight[{name}]": rng.uniform(0.2, 0.8) for name in EXPERTS}
    if method != "task_arithmetic":
        made |= {f"density[{name}]": rng.uniform(0.2, 0.9) for name in EXPERTS}
    return made


def plain_pass(base: dict[str, torch.Tensor], experts: dict[str, dict[str, torch.Tensor]]) -> float:
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}

    def add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(a.float() + b.float() + c.float() + d.float())

    fused = torch.compile(add, dynamic=True)
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        for name, tensor in base.items():
            fused(tensor.view(-1), *(experts[expert][name].view(-1) for expert in EXPERTS), live[name].view(-1))
        best = min(best, time.perf_counter() - started)
    return best


def with_mergekit(python: str, folder: Path, method: str) -> float:
    rng = random.Random(0)
    values = params(method, rng)
    models = [
        {"model": str(folder / name),
         "parameters": {key.split("[")[0]: value for key, value in values.items() if f"[{name}]" in key}}
        for name in EXPERTS
    ]  # fmt: skip
    config = folder / f"{method}.yaml"
    content = {"merge_method": method, "base_model": str(folder / "base"), "models": models, "dtype": "bfloat16"}
    config.write_text(yaml.safe_dump(content))
    program = "from mergekit.scripts.run_yaml import main; main()"
    started = time.perf_counter()
    arguments = [python, "-c", program, str(config), str(folder / f"out-{method}"), "--quiet"]
    subprocess.run(arguments, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mergekit-python", help="interpreter of an environment with mergekit 0.1.5")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    base, experts = checkpoints()
    started = time.perf_counter()
    engine = MergeEngine(base, experts, compile=True)
    loaded = time.perf_counter() - started
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    bandwidth = plain_pass(base, experts)
    rows = []
    for method in METHODS:
        rng = random.Random(1)
        seconds = []
        for _ in range(arguments.repeat + 1):
            recipe = Recipe(method, {name: name for name in EXPERTS}, params(method, rng), "base")
            seconds.append(engine.merge_into(recipe, live).seconds)
        row: dict[str, object] = {
            "method": method, "first": seconds[0], "median": sorted(seconds[1:])[len(seconds[1:]) // 2],
            "best": min(seconds[1:]), "plain_pass": bandwidth,
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row), flush=True)
    if arguments.mergekit_python:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for name, tensors in {"base": base, **experts}.items():
                (folder / name).mkdir()
                save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
                (folder / name / "config.json").write_text(json.dumps(CONFIG))
            for row in rows:
                row["mergekit"] = with_mergekit(arguments.mergekit_python, folder, str(row["method"]))
                print(json.dumps(row), flush=True)
    result = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
              "torch": torch.__version__,
              "load_seconds": loaded, "rows": rows}  # fmt: skip
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
