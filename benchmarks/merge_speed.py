"""Seconds per candidate merge: the resident engine, a plain pass over memory, and mergekit, in one run.

    python benchmarks/merge_speed.py [--methods ties ...] [--mergekit-python /path/to/venv/bin/python]
        [--repeat 7] [--results benchmarks/merge_speed.json] [--document FILE]

Checkpoints are random bf16 tensors in the shapes of SmolLM2-135M (base and 3 experts). "plain pass"
reads K + 1 tensors and writes one by a single compiled addition: what memory allows. mergekit runs
as its own program, import included, because that is what a candidate costs with it. Rows of methods that
were not measured this time stay in the results, so that a run can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipe import Recipe

EXPERTS = ("e0", "e1", "e2")
BARS = {"task_arithmetic": 50, "ties": 100, "dare_ties": 100}
LEAST_SHARE_OF_PLAIN_PASS = 0.4
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "dtype": "bfloat16",
}  # fmt: skip
HEAD = """# Merging: seconds per candidate

Written by `python benchmarks/merge_speed.py --document FILE`; do not edit.

Random bf16 checkpoints in the shapes of SmolLM2-135M (134.5 million entries, tied embeddings), base and 3 experts,
2 threads. A candidate has new weights and densities. "plain pass" is a compiled addition that reads the same K + 1
tensors and writes one: the share is its time over ours. mergekit 0.1.5 runs as its own program on the same files, bf16,
reading, merging and writing, because that is what a candidate costs with it. "first" is the first candidate of
a process: for methods that drop, ranking or summing every task vector once. No GPU was at hand: nothing here says what
one does.
"""


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


def plain_pass(base: dict[str, torch.Tensor], experts: dict[str, dict[str, torch.Tensor]], repeat: int) -> list[float]:
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}

    def add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(a.float() + b.float() + c.float() + d.float())

    fused = torch.compile(add, dynamic=True)
    seconds = []
    for _ in range(repeat + 2):
        started = time.perf_counter()
        for name, tensor in base.items():
            fused(tensor.view(-1), *(experts[expert][name].view(-1) for expert in EXPERTS), live[name].view(-1))
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def with_engine(
    method: str, base: dict[str, torch.Tensor], experts: dict[str, dict[str, torch.Tensor]], repeat: int
) -> list[float]:
    """Seconds of the first candidate and of ``repeat`` more."""
    engine = MergeEngine(base, experts, compile=True)
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}
    rng = random.Random(1)
    seconds = []
    for _ in range(repeat + 1):
        recipe = Recipe(method, {name: name for name in EXPERTS}, params(method, rng), "base")
        seconds.append(engine.merge_into(recipe, live).seconds)
    return seconds


def with_mergekit(python: str, folder: Path, method: str) -> float:
    values = params(method, random.Random(0))
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


def machine() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "unknown processor"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, no GPU"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    base, experts = checkpoints()
    rows = {}
    for method in arguments.methods:
        first, *rest = with_engine(method, base, experts, arguments.repeat)
        plain = statistics.median(plain_pass(base, experts, arguments.repeat))
        row = {"first": first, "median": statistics.median(rest), "best": min(rest), "plain_pass": plain}
        if arguments.mergekit_python:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                for name, tensors in {"base": base, **experts}.items():
                    (folder / name).mkdir()
                    save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
                    (folder / name / "config.json").write_text(json.dumps(CONFIG))
                row["mergekit"] = with_mergekit(arguments.mergekit_python, folder, method)
        rows[method] = row
        print(json.dumps({"method": method, **row}), flush=True)
    return {"machine": machine(), "date": date.today().isoformat(), "rows": {**known.get("rows", {}), **rows}}


def document(results: dict[str, Any]) -> str:
    lines = [
        HEAD,
        f"Machine: {results['machine']}; {results['date']}.\n",
        "| method | median s | best s | first s | plain pass s | share of it | mergekit s | times faster | bar |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in results["rows"].items():
        times = row.get("mergekit", float("nan")) / row["median"]
        lines.append(
            f"| {method} | {row['median']:.3f} | {row['best']:.3f} | {row['first']:.1f} | {row['plain_pass']:.3f} "
            f"| {row['plain_pass'] / row['median']:.0%} | {row.get('mergekit', float('nan')):.1f} | {times:.0f} "
            f"| {BARS[method]}x, {LEAST_SHARE_OF_PLAIN_PASS:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="*", choices=BARS, default=list(BARS))
    parser.add_argument("--mergekit-python", help="interpreter of an environment with mergekit 0.1.5")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--document", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments)
    arguments.results.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.document:
        arguments.document.write_text(document(results))


if __name__ == "__main__":
    main()
