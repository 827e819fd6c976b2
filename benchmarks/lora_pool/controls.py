"""What the search owes to its pool, and to each part of the method:  python -m benchmarks.lora_pool.controls

Two controls on the pool of ``python -m benchmarks.lora_pool``: the same search on random LoRAs of the same norms, and a
LoRA trained on the search items instead of a search. And the paper's claims one by one, at equal budget: both stages,
one alone, weights of at least 0, no denoising, a prefilter. Finished runs are kept; the table goes into
docs/benchmarks/lora-pools.md (``--seeds 0``: that of the runs that are there).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from scipy.stats import ttest_rel

from benchmarks.lora_pool.merged_model import MergedModel
from benchmarks.lora_pool.pool import MODULES, Lora, Pool, PoolPlan, load_pool
from benchmarks.lora_pool.procedures import Procedure, Run, default, evolution, run
from benchmarks.lora_pool.report import DOCS
from benchmarks.search.tables import between_marks
from mergefront.optimizer.samplers.evo_merging.staged_evolution import STAGES, Stage

BUDGET = 300
DENOISING = (Stage("denoise", True, False, last=True),)
FULL = "both stages (default)"


def ablations(budget: int, loras: int) -> tuple[Procedure, ...]:
    """The default search of ``budget`` evaluations on so many LoRAs, and what takes one part of it away."""
    half = loras // 2
    return (
        Procedure(FULL, "cat", budget, default()),
        Procedure("weights alone (no denoising)", "cat", budget, default(densities=False)),
        Procedure("weights of at least 0", "cat", budget, default(), lowest=0.0),
        Procedure(f"best {half} of {loras} LoRAs kept", "cat", budget, default(top=half)),
        Procedure("densities alone, by CMA-ES", "cat", budget, evolution(DENOISING)),
        Procedure("weights alone, by CMA-ES (LoRAHub)", "cat", budget, evolution(STAGES["lorahub"])),
        Procedure("both stages, by CMA-ES (released)", "cat", budget, evolution(STAGES["paper"], budget // 3)),
    )


FRESH = "a LoRA trained on the search items"
HELD_BACK = 16
"""Search items that say when training has gone on long enough; it is done again on all for as many steps."""


def random_pool(pool: Pool, seed: int) -> Pool:
    """The pool with every factor of every LoRA replaced by normal noise of the same Frobenius norm."""
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: torch.Tensor) -> torch.Tensor:
        drawn = torch.randn(tensor.shape, generator=generator)
        return drawn * (tensor.norm() / drawn.norm())

    loras = tuple(
        Lora(lora.name, lora.scaling, {name: (like(a), like(b)) for name, (a, b) in lora.factors.items()})
        for lora in pool.loras
    )
    return replace(pool, loras=loras)


def fresh_lora(pool: Pool, seed: int, most: int = 150) -> float:
    """The report loss of a LoRA of rank 4 trained on the search items, for as many steps as held back items gain."""
    items = pool.search_items

    def losses(chosen: torch.Tensor, steps: int, watched: torch.Tensor) -> list[float]:
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=list(MODULES), task_type="CAUSAL_LM")
        adapted = get_peft_model(pool.model, config)
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=4e-3, weight_decay=0.0)
        seen = []
        for _ in range(steps):
            rows = chosen[torch.randint(len(chosen), (32,))]
            optimizer.zero_grad()
            adapted(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            with torch.no_grad():
                seen.append(float(adapted(input_ids=watched, labels=watched).loss))
        adapted.unload()
        return seen

    steps = int(np.argmin(losses(items[HELD_BACK:], most, items[:HELD_BACK]))) + 1
    return losses(items, steps, pool.report_items)[-1]


class KeptRuns:
    """Finished runs by pool, in a file that an interrupted benchmark goes on from."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.runs = [(line.pop("pool"), Run(**line)) for line in lines]

    def has(self, pool: str, procedure: str, seed: int) -> bool:
        return any((there, one.procedure, one.seed) == (pool, procedure, seed) for there, one in self.runs)

    def add(self, pool: str, finished: Run) -> None:
        self.runs.append((pool, finished))
        with self._path.open("a") as file:
            file.write(json.dumps({"pool": pool, **finished.to_json()}) + "\n")
        print(f"{pool:8} seed {finished.seed}  {finished.procedure:36} {finished.report:.4f}", flush=True)


def table(runs: Sequence[tuple[str, Run]]) -> list[str]:
    """Report losses of every row, and their differences from the default on the trained pool, seed by seed."""
    ours = {one.seed: one.report for pool, one in runs if pool == "trained" and one.procedure == FULL}
    lines = [
        "| pool | procedure | seeds | search items | report items | minus the default | better in | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pool, name in dict.fromkeys((pool, one.procedure) for pool, one in runs):
        rows = [one for there, one in runs if (there, one.procedure) == (pool, name) and one.seed in ours]
        reports = np.array([one.report for one in rows])
        theirs: NDArray[np.float64] = reports - np.array([ours[one.seed] for one in rows])
        searched = f"{np.median([one.best[-1] for one in rows]):.4f}" if rows[0].best else ""
        p = f"{ttest_rel(theirs, np.zeros(len(theirs))).pvalue:.1g}" if theirs.any() and len(theirs) > 1 else ""
        better = f"{int((theirs < 0).sum())} of {len(rows)}" if theirs.any() else ""
        gap = f"{theirs.mean():+.4f}" if theirs.any() else ""
        lines.append(
            f"| {pool} | {name} | {len(rows)} | {searched} | {np.median(reports):.4f} | {gap} | {better} | {p} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_pool.controls", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lora_pool")
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained = load_pool(PoolPlan(seed=0), given.cache)
    kept = KeptRuns(given.cache / "controls.jsonl")
    parts = ablations(BUDGET, len(trained.loras))
    for seed in range(given.seeds):
        pools = {"trained": (trained, parts), "random": (random_pool(trained, seed), (parts[0], parts[5]))}
        for name, (pool, procedures) in pools.items():
            wanted = [one for one in procedures if not kept.has(name, one.name, seed)]
            model = MergedModel(pool) if wanted else None
            for procedure in wanted:
                assert model is not None
                kept.add(name, run(procedure, model, seed))
            if model is not None:
                ones = np.ones(len(model.names))
                model.loss(ones, 0 * ones)  # leaves the base in the shared model
        if not kept.has("none", FRESH, seed):
            started = time.perf_counter()
            kept.add("none", Run(FRESH, seed, [], fresh_lora(trained, seed), time.perf_counter() - started))
    DOCS.write_text(between_marks(DOCS.read_text(), "controls", "\n".join(table(kept.runs))))


if __name__ == "__main__":
    main()
