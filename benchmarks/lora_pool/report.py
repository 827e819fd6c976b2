"""The benchmark's page: medians with the range of the middle half, paired differences with bootstrap intervals, how
many evaluations a loss takes, and a plot of all runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lora_pool.merged_model import MergedModel
from benchmarks.lora_pool.pool import PoolPlan
from benchmarks.lora_pool.procedures import OURS, PROCEDURES, RELEASED, Run
from benchmarks.search.tables import between_marks

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks" / "lora-pools.md"
PLOT = "lora-pools.png"
BOOTSTRAP = 10_000
WANTED_SEEDS = 10
MARKS = (40, 100, 200, 300, 600, 1200)


def write_report(path: Path, plan: PoolPlan, model: MergedModel, runs: Sequence[Run]) -> None:
    """Writes the part of the page that is about the finished ``runs``."""
    written = "\n".join(_page(plan, model, runs, path.with_name(PLOT).name))
    path.write_text(between_marks(path.read_text(), "relatives", written))
    _plot(path.with_name(PLOT), runs)


def _page(plan: PoolPlan, model: MergedModel, runs: Sequence[Run], plot: str) -> list[str]:
    count = len(model.names)
    whole = np.ones(count)
    alone = min(model.loss(whole, row) for row in np.eye(count))
    lines = [
        f"A pool of {count} LoRAs on a tiny Llama (2 layers, hidden size 48), all trained by the benchmark itself. "
        f"{plan.relevant} of them have to do with the target, a mixture of {plan.target_dialects} dialects; "
        f"the other {count - plan.relevant} were trained on other tasks or are noise. Loss is in nats per symbol on "
        f"the target's {plan.search_items} search items; lower is better. The last column is the loss of the run's "
        f"best merge on {plan.report_items} items that no search saw.",
        "",
        f"For orientation: base {model.loss(whole, 0 * whole):.3f}, best single LoRA {alone:.3f}, "
        f"uniform mix {model.loss(whole, whole / count):.3f}.",
        "",
        "Every procedure is scored by the lowest plain loss that it has evaluated so far, penalties left out. "
        "`cat` is the exact sum of LoRAs with their scalings. `factor` is the released code's operator, which adds "
        "A and B matrices apart and ignores scalings. The CMA-ES rows have the published settings: "
        "population 20, sigma 0.05, penalties 0.05, in two stages 400 + 800 evaluations. LoRAHub's setting is "
        "weights only; its own budget is 40. Our row counts the evaluations of the base, each LoRA alone and the "
        "uniform mix with which it begins.",
        "",
        f"Median over the seeds, in brackets the middle half. {platform.machine()}, {os.cpu_count()} cores, one "
        "thread. The machine was busy with other work, so seconds per proposal are an upper bound.",
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
    return [*lines, "", f"![Lowest loss so far over evaluations]({plot})", "", *_verdicts(runs)]


def _fewest(runs: Sequence[Run]) -> int:
    return min(sum(run.procedure == procedure.name for run in runs) for procedure in PROCEDURES)


def _verdicts(runs: Sequence[Run]) -> list[str]:
    """What the table says about the aims: differences seed by seed, and evaluations needed."""
    ours = {run.seed: run for run in runs if run.procedure == OURS}
    if not ours:
        return []
    budget = len(next(iter(ours.values())).best)
    said = [
        "Theirs minus ours, seed by seed: mean with its 95% bootstrap interval, and in how many seeds ours is lower.",
        "",
        f"| procedure | both at 40 | both at {budget} | theirs at their end, ours at {budget} | report items |",
        "| --- | --- | --- | --- | --- |",
    ]
    for procedure in PROCEDURES:
        theirs = {run.seed: run for run in runs if run.procedure == procedure.name and run.seed in ours}
        if procedure.name == OURS or not theirs:
            continue
        cells = []
        for mark in (40, budget):
            known = mark <= procedure.evaluations
            cells.append(
                _difference([(run.best[mark - 1], ours[seed].best[mark - 1]) for seed, run in theirs.items()])
                if known
                else ""
            )
        cells.append(_difference([(run.best[-1], ours[seed].best[-1]) for seed, run in theirs.items()]))
        cells.append(_difference([(run.report, ours[seed].report) for seed, run in theirs.items()]))
        said.append("| " + " | ".join([procedure.name, *cells]) + " |")
    return [*said, "", *_evaluations_needed(runs, list(ours.values()), budget)]


def _evaluations_needed(runs: Sequence[Run], ours: Sequence[Run], budget: int) -> list[str]:
    """How soon ours reached what the released procedure ended with, and what its first stage was worth."""
    released = [run for run in runs if run.procedure == RELEASED]
    if not released:
        return []
    before, after = np.median(np.array([(run.best[0], run.best[399]) for run in released]), axis=0)
    aim = float(np.median([run.best[-1] for run in released]))
    reached = [next((i + 1 for i, loss in enumerate(run.best) if loss <= aim), None) for run in ours]
    counted = sorted(number for number in reached if number is not None)
    low, high = _interval(counted) if counted else (0.0, 0.0)
    return [
        f"- The released first stage, 400 evaluations of densities at equal weights, takes the loss from "
        f"{before:.4f} to {after:.4f} (medians). That is what denoising before scaling is worth "
        "here.",
        f"- The released procedure's median final loss, {aim:.4f} after 1200 evaluations, was reached by ours in "
        f"{len(counted)} of {len(reached)} seeds within {budget} evaluations"
        + (
            f". It took {int(np.median(counted))} in the median (mean {np.mean(counted):.0f}, 95% interval {low:.0f} "
            f"to {high:.0f}; at most {counted[-1]}). A quarter of its evaluations are 300."
            if counted
            else "."
        ),
    ]


def _difference(pairs: Sequence[tuple[float, float]]) -> str:
    """Mean of theirs minus ours with its interval, and the count of seeds in which ours is lower."""
    differences = np.array([theirs - ours for theirs, ours in pairs])
    low, high = _interval(differences)
    return f"{differences.mean():+.4f} ({low:+.4f} to {high:+.4f}), {int((differences > 0).sum())}/{len(pairs)}"


def _interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile bootstrap interval of a mean; the resamples are always the same."""
    drawn = np.random.default_rng(0).choice(np.asarray(values, dtype=float), size=(BOOTSTRAP, len(values)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _plot(path: Path, runs: Sequence[Run]) -> None:
    """Median of the lowest loss so far over evaluations, with the middle half of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for procedure in PROCEDURES:
        own = [run.best for run in runs if run.procedure == procedure.name]
        if not own or procedure.operator == "factor":
            continue
        low, middle, high = np.quantile(np.array(own), [0.25, 0.5, 0.75], axis=0)
        at = np.arange(1, len(middle) + 1)
        width = 2.2 if procedure.name == OURS else 1.2
        (line,) = axes.plot(at, middle, label=procedure.name, linewidth=width)
        axes.fill_between(at, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="evaluations", ylabel="lowest loss so far (nats per symbol)")
    axes.axvline(300, color="gray", linewidth=0.8, linestyle=":")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.4f} ({low:.4f}–{high:.4f})"
