"""The benchmark's page: medians with the range of the middle half, and how many evaluations a loss takes."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.lora_pool.merged_model import MergedModel
from benchmarks.lora_pool.pool import PoolPlan
from benchmarks.lora_pool.procedures import OURS, PROCEDURES, RELEASED, Run

WANTED_SEEDS = 10
MARKS = (40, 100, 200, 300, 600, 1200)


def write_report(path: Path, plan: PoolPlan, model: MergedModel, runs: Sequence[Run]) -> None:
    """Writes the page about the finished ``runs``."""
    path.write_text("\n".join(_page(plan, model, runs)) + "\n")


def _page(plan: PoolPlan, model: MergedModel, runs: Sequence[Run]) -> list[str]:
    count = len(model.names)
    whole = np.ones(count)
    alone = min(model.loss(whole, row) for row in np.eye(count))
    lines = [
        "# Merging a pool of LoRAs: evo-merging against its relatives",
        "",
        "Written by `python -m benchmarks.lora_pool`; do not edit.",
        "",
        f"A pool of {count} LoRAs on a tiny Llama (2 layers, hidden size 48), all trained by the benchmark itself. "
        f"{plan.relevant} of them have to do with the target, a mixture of {plan.target_dialects} dialects; "
        f"the other {count - plan.relevant} were trained on other tasks or are noise. Loss: nats per symbol on the "
        f"target's {plan.search_items} search items, lower is better; the last column is the loss of the run's best "
        f"merge on {plan.report_items} items that no search saw.",
        "",
        f"For orientation: base {model.loss(whole, 0 * whole):.3f}, best single LoRA {alone:.3f}, "
        f"uniform mix {model.loss(whole, whole / count):.3f}.",
        "",
        "Every procedure is scored by the lowest plain loss that it has evaluated so far, penalties left out. "
        "`cat` is the exact sum of LoRAs with their scalings; `factor` is the released code's operator, which adds "
        "A and B matrices apart and ignores scalings. The CMA-ES rows have the published settings: "
        "population 20, sigma 0.05, penalties 0.05, in two stages 400 + 800 evaluations. LoRAHub's setting is "
        "weights only; its own budget is 40. Our row counts the evaluations of the base, each LoRA alone and the "
        "uniform mix with which it begins.",
        "",
        f"Median over the seeds, in brackets the middle half. {platform.machine()}, {os.cpu_count()} cores, one "
        "thread; the machine was busy with other work, so seconds per proposal are an upper bound.",
        "",
        "| procedure | seeds | " + " | ".join(f"at {mark}" for mark in MARKS) + " | report items | s per ask |",
        "| --- | --- | " + " | ".join("---" for _ in MARKS) + " | --- | --- |",
    ]
    for procedure in PROCEDURES:
        own = [run for run in runs if run.procedure == procedure.name]
        if not own:
            continue
        cells = [_spread([run.best[m - 1] for run in own]) if m <= procedure.evaluations else "" for m in MARKS]
        asks = f"{np.median([run.seconds_per_ask for run in own]):.3f}"
        row = [procedure.name, str(len(own)), *cells, _spread([run.report for run in own]), asks]
        lines.append("| " + " | ".join(row) + " |")
    if _fewest(runs) < WANTED_SEEDS:
        lines += ["", f"**Incomplete**: fewer than {WANTED_SEEDS} seeds; the same command continues where it stopped."]
    return [*lines, "", *_verdicts(runs)]


def _fewest(runs: Sequence[Run]) -> int:
    return min(sum(run.procedure == procedure.name for run in runs) for procedure in PROCEDURES)


def _verdicts(runs: Sequence[Run]) -> list[str]:
    """What the table says about the aims, in so many words."""
    ours = {run.seed: run for run in runs if run.procedure == OURS}
    if not ours:
        return []
    said = []
    budget = len(next(iter(ours.values())).best)
    for procedure in PROCEDURES:
        theirs = {run.seed: run for run in runs if run.procedure == procedure.name and run.seed in ours}
        if procedure.name == OURS or not theirs:
            continue
        equal = min(budget, procedure.evaluations)
        wins = sum(ours[seed].best[equal - 1] < theirs[seed].best[equal - 1] for seed in theirs)
        late = sum(ours[seed].best[-1] < theirs[seed].best[-1] for seed in theirs)
        said.append(
            f"- Against {procedure.name}: lower loss at {equal} evaluations each in {wins} of {len(theirs)} seeds; "
            f"ours at {budget} is lower than theirs at {procedure.evaluations} in {late} of {len(theirs)}."
        )
    released = [run.best[-1] for run in runs if run.procedure == RELEASED]
    first = [(run.best[0], run.best[399]) for run in runs if run.procedure == RELEASED]
    if released:
        before, after = np.median(np.array(first), axis=0)
        said.append(
            f"- The released first stage, 400 evaluations of densities at equal weights, takes the loss from "
            f"{before:.4f} to {after:.4f} (medians): what denoising before scaling is worth here."
        )
        aim = float(np.median(released))
        reached = [next((i + 1 for i, loss in enumerate(run.best) if loss <= aim), None) for run in ours.values()]
        counted = sorted(r for r in reached if r is not None)
        said.append(
            f"- The released procedure's median final loss, {aim:.4f} after 1200 evaluations, was reached by ours in "
            f"{len(counted)} of {len(reached)} seeds within {budget} evaluations"
            + (f", after {int(np.median(counted))} in the median (at most {counted[-1]})." if counted else ".")
        )
    return said


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.4f} ({low:.4f}–{high:.4f})"
