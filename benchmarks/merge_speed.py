"""Seconds per candidate merge: the resident engine, a plain pass over memory, and mergekit, in one run.

    python benchmarks/merge_speed.py [--methods ties ...] [--mergekit-python /path/to/venv/bin/python]
        [--device cuda] [--model Llama-3-8B] [--repeat 7] [--results benchmarks/merge_speed.json] [--document FILE]

Checkpoints are random bf16 tensors in the shapes of a known model (base and 3 experts), on the device. "plain pass"
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
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import save_file

from mergefront.adapters.merging.engine import MergeEngine
from mergefront.optimizer.recipes.recipe import Recipe

Tensors = dict[str, torch.Tensor]

EXPERTS = ("e0", "e1", "e2")
BARS = {"task_arithmetic": 50, "ties": 100, "dare_ties": 100}
LEAST_SHARE_OF_PLAIN_PASS = 0.4


@dataclass(frozen=True)
class Model:
    """A Llama's shapes."""

    hidden: int
    inner: int
    keys: int
    layers: int
    vocabulary: int
    tied: bool

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner, keys = self.hidden, self.inner, self.keys
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
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
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, hidden)

    def config(self) -> dict[str, Any]:
        """As Hugging Face writes it; heads of 64 numbers."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.inner, "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64, "num_key_value_heads": self.keys // 64,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048, "dtype": "bfloat16",
        }  # fmt: skip


MODELS = {
    "SmolLM2-135M": Model(576, 1536, 192, 30, 49152, True),
    "Llama-3.2-1B": Model(2048, 8192, 512, 16, 128256, True),
    "Llama-3-8B": Model(4096, 14336, 1024, 32, 128256, False),
}
HEAD = """# Merging: seconds per candidate

Written by `python benchmarks/merge_speed.py --document FILE`; do not edit.

Random bf16 checkpoints in a known model's shapes, base and 3 experts. A candidate has new weights and densities. "plain
pass" is a compiled addition that reads the same K + 1 tensors and writes one: the share is its time over ours. mergekit
0.1.5 runs as its own program on the same files, bf16, reading, merging and writing, because that is what a candidate
costs with it. "first" is the first candidate of a process: for methods that drop, ranking or summing every task vector
once. "float32": live weights in float32 with the digits of bf16, as a study on a processor scores them.
"""


def checkpoints(model: Model, device: str) -> tuple[Tensors, dict[str, Tensors]]:
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    base = {name: (normal(shape) * 0.02).bfloat16() for name, shape in model.shapes()}
    experts = {
        expert: {
            name: (tensor.float() + 0.002 * normal(tuple(tensor.shape))).bfloat16() for name, tensor in base.items()
        }
        for expert in EXPERTS
    }
    return base, experts


def params(method: str, rng: random.Random) -> dict[str, float]:
    made = {f"weight[{name}]": rng.uniform(0.2, 0.8) for name in EXPERTS}
    if method != "task_arithmetic":
        made |= {f"density[{name}]": rng.uniform(0.2, 0.9) for name in EXPERTS}
    return made


def plain_pass(base: Tensors, experts: dict[str, Tensors], repeat: int) -> list[float]:
    live = {name: torch.empty_like(tensor) for name, tensor in base.items()}

    def add(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(a.float() + b.float() + c.float() + d.float())

    fused = torch.compile(add, dynamic=True)
    seconds = []
    for _ in range(repeat + 2):
        started = time.perf_counter()
        for name, tensor in base.items():
            fused(tensor.view(-1), *(experts[expert][name].view(-1) for expert in EXPERTS), live[name].view(-1))
        _wait(live)
        seconds.append(time.perf_counter() - started)
    return seconds[2:]


def _wait(tensors: Tensors) -> None:
    """Until the device has done what it was asked."""
    if next(iter(tensors.values())).is_cuda:
        torch.cuda.synchronize()


def with_engine(
    method: str, base: Tensors, experts: dict[str, Tensors], repeat: int, live_dtype: torch.dtype | None = None
) -> list[float]:
    """Seconds of the first candidate and of ``repeat`` more.

    Live weights of a wider ``live_dtype`` get the digits of the stored ones, as a study on a processor scores them.
    """
    rounding: Literal["stored"] | None = None if live_dtype is None else "stored"
    engine = MergeEngine(base, experts, next(iter(base.values())).device, compile=True, rounding=rounding)
    live = {name: torch.empty_like(tensor, dtype=live_dtype) for name, tensor in base.items()}
    rng = random.Random(1)
    seconds = []
    for _ in range(repeat + 1):
        recipe = Recipe(method, {name: name for name in EXPERTS}, params(method, rng), "base")
        started = time.perf_counter()
        engine.merge_into(recipe, live)
        _wait(live)
        seconds.append(time.perf_counter() - started)
    return seconds


def with_mergekit(python: str, folder: Path, method: str, device: str) -> float:
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
    arguments += ["--cuda"] if device.startswith("cuda") else []
    subprocess.run(arguments, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - started


def machine(device: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "unknown processor"
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    return f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {gpu}"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    model = MODELS[arguments.model]
    base, experts = checkpoints(model, arguments.device)
    rows = {}
    for method in arguments.methods:
        first, *rest = with_engine(method, base, experts, arguments.repeat)
        plain = statistics.median(plain_pass(base, experts, arguments.repeat))
        row = {"first": first, "median": statistics.median(rest), "best": min(rest), "plain_pass": plain}
        row["float32"] = statistics.median(with_engine(method, base, experts, arguments.repeat, torch.float32)[1:])
        if arguments.mergekit_python:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                for name, tensors in {"base": base, **experts}.items():
                    (folder / name).mkdir()
                    save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
                    (folder / name / "config.json").write_text(json.dumps(model.config()))
                row["mergekit"] = with_mergekit(arguments.mergekit_python, folder, method, arguments.device)
        rows[method] = row
        print(json.dumps({"method": method, **row}), flush=True)
    return {
        "machine": machine(arguments.device),
        "model": arguments.model,
        "date": date.today().isoformat(),
        "rows": {**known.get("rows", {}), **rows},
    }


def document(results: dict[str, Any]) -> str:
    lines = [
        HEAD,
        f"{results['model']}. Machine: {results['machine']}; {results['date']}.\n",
        "| method | median s | best s | first s | float32 s | plain pass s | share | mergekit s | times faster | bar |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, row in results["rows"].items():
        times = row.get("mergekit", float("nan")) / row["median"]
        lines.append(
            f"| {method} | {row['median']:.3f} | {row['best']:.3f} | {row['first']:.1f} "
            f"| {row.get('float32', float('nan')):.3f} | {row['plain_pass']:.3f} "
            f"| {row['plain_pass'] / row['median']:.0%} | {row.get('mergekit', float('nan')):.1f} | {times:.0f} "
            f"| {BARS[method]}x, {LEAST_SHARE_OF_PLAIN_PASS:.0%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="*", choices=BARS, default=list(BARS))
    parser.add_argument("--model", choices=MODELS, default="SmolLM2-135M", help="whose shapes")
    parser.add_argument("--device", default="cpu")
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
