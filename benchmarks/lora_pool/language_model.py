"""Controls and parts on a pool of a real language model:  python -m benchmarks.lora_pool.language_model

The pool ``units`` of examples/api_only (twelve LoRAs of SmolLM2-135M; six have to do with the target), computed by that
example's local backend, at 40 evaluations. Procedures and table are those of ``benchmarks.lora_pool.controls``, and so
are both controls. Densities are any share here; a server has copies at four. Finished runs are kept in ``--cache``;
``--seeds 0`` writes the table of those that are there. About 9 minutes of one slow core a seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.lora_pool.controls import FRESH, HELD_BACK, KeptRuns, ablations, table
from benchmarks.lora_pool.procedures import Array, Run, run
from benchmarks.lora_pool.report import DOCS
from benchmarks.search.tables import between_marks
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.scores.evaluation import EvaluationRequest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path[:0] = [str(EXAMPLES / "smollm"), str(EXAMPLES / "api_only")]

from compare import BASE_MODEL, CASES, FIRST_BLOCK  # noqa: E402
from make_pool import PLAN, make_base, train, write_noise  # noqa: E402
from upper_blocks import LOSS, UpperBlocks  # noqa: E402

CASE = CASES["units"]
LORAS = EXAMPLES / "api_only" / "loras"
BUDGET = 40
FRESH_SEEDS = 3
"""Of the trained LoRA, which takes longer than a search."""
STEPS = (15, 30, 60)
"""Lengths of training that the held back items choose from."""


class LanguageModelPool:
    """The merges of LoRAs in these folders, scored on the target's items."""

    def __init__(self, loras: Mapping[str, Path]) -> None:
        self.names = list(loras)
        task = JsonlTask.read(LOSS, CASE.items("search"), "loss", report=CASE.items("report"))
        self._blocks = UpperBlocks(BASE_MODEL, loras, task, FIRST_BLOCK)

    def losses(self, alpha: Array, beta: Array, split: str = "search") -> Array:
        """Nats per token of every item's answer."""
        params = {f"density[{name}]": float(value) for name, value in zip(self.names, alpha, strict=True)}
        params |= {f"weight[{name}]": float(value) for name, value in zip(self.names, beta, strict=True)}
        recipe = Recipe("lora_cat", {name: name for name in self.names}, params, None)
        return np.array(self._blocks.evaluate(recipe, EvaluationRequest((LOSS,), split)).items[LOSS].scores)

    def loss(self, alpha: Array, beta: Array, split: str = "search") -> float:
        return float(self.losses(alpha, beta, split).mean())


def random_loras(seed: int, out: Path) -> dict[str, Path]:
    """The pool with every factor of every LoRA replaced by normal noise of the same norm."""
    generator = torch.Generator().manual_seed(seed)
    for name in CASE.loras:
        write_noise(LORAS / name, out / name, generator)
    return {name: out / name for name in CASE.loras}


def fresh_lora(seed: int, out: Path) -> float:
    """The report loss of a LoRA trained on the search items, for as many steps as is best on those held back."""
    items = [json.loads(line) for line in Path(CASE.items("search")).read_text(encoding="utf-8").splitlines()]
    whole = np.ones(1)

    def trained(steps: int, chosen: list[dict[str, str]], name: str) -> LanguageModelPool:
        train(name, replace(PLAN, steps=steps), BASE_MODEL, chosen, out / name, seed)
        return LanguageModelPool({name: out / name})

    held_back = [
        trained(steps, items[HELD_BACK:], f"{steps} steps").losses(whole, whole)[:HELD_BACK].mean() for steps in STEPS
    ]
    return trained(STEPS[int(np.argmin(held_back))], items, "all items").loss(whole, whole, "report")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_pool.language_model", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lora_pool")
    given = parser.parse_args()
    torch.set_num_threads(1)
    make_base()
    given.cache.mkdir(parents=True, exist_ok=True)
    kept = KeptRuns(given.cache / f"controls-{CASE.name}.jsonl")
    parts = ablations(BUDGET, len(CASE.loras))
    chosen = {name: LORAS / name for name in CASE.loras}
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            for pool, procedures in (("trained", parts), ("random", parts[:1])):
                wanted = [one for one in procedures if not kept.has(pool, one.name, seed)]
                if wanted:
                    loras = chosen if pool == "trained" else random_loras(seed, Path(folder) / "random")
                    model = LanguageModelPool(loras)
                    for procedure in wanted:
                        kept.add(pool, run(procedure, model, seed))
            if seed < FRESH_SEEDS and not kept.has("none", FRESH, seed):
                started = time.perf_counter()
                kept.add("none", Run(FRESH, seed, [], fresh_lora(seed, Path(folder)), time.perf_counter() - started))
    DOCS.write_text(between_marks(DOCS.read_text(), f"controls of {CASE.name}", "\n".join(table(kept.runs))))


if __name__ == "__main__":
    main()
