"""What the runs say: medians with intervals, evaluations saved, seconds per proposal; as Markdown and as plots."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.search.language_models.problems import LANGUAGE_MODELS
from benchmarks.search.problems import NETWORK
from benchmarks.search.runs import HORIZONS, Run

OURS = "MM-MO"
DRAWN = (OURS, "MM-MO paper")
"""Of our own samplers, those in the picture; the rest are ablations."""
BEFORE = "MM-MO, roughness"
"""The default before."""
STRONGEST = ("BoTorch qLogNEHVI", "Optuna GP", "TPE", BEFORE)
PEERS_SHOWN = ("BoTorch qLogNEHVI", "Ax", "qPOTS", "Optuna GP", "TPE multivariate", "random")
"""On the first page."""
FEWEST_RANKED = 3
"""Fewer seeds than that are shown, but rank nothing."""
RIVAL = "NSGA-II"
RIVAL_EVALUATIONS = 300
RESAMPLES = 2000

Grouped = Mapping[str, Mapping[str, Sequence[Run]]]


def grouped(runs: Sequence[Run]) -> Grouped:
    """Runs by problem and sampler, the longest of every seed."""
    found: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        known = found[run.problem][run.sampler].get(run.seed)
        if known is None or len(run.hypervolumes) > len(known.hypervolumes):
            found[run.problem][run.sampler][run.seed] = run
    return {
        problem: {sampler: [seeds[seed] for seed in sorted(seeds)] for sampler, seeds in samplers.items()}
        for problem, samplers in found.items()
    }


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 90% bootstrap interval."""
    rng = np.random.default_rng(0)
    array = np.asarray(values, dtype=float)
    medians = np.median(array[rng.integers(len(array), size=(RESAMPLES, len(array)))], axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return float(np.median(array)), float(low), float(high)


def at(runs: Sequence[Run], evaluations: int) -> list[float]:
    """Hypervolumes after so many evaluations, of the runs that got so far."""
    return [run.hypervolumes[evaluations - 1] for run in runs if len(run.hypervolumes) >= evaluations]


def evaluations_to(run: Run, target: float) -> float:
    """How many evaluations it took to reach a hypervolume; infinity when it was not reached."""
    return next((i + 1.0 for i, value in enumerate(run.hypervolumes) if value >= target), float("inf"))


def longest_runs(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs that got furthest, at least five of them where there are so many, and how far all of these got."""
    lengths = sorted((len(run.hypervolumes) for run in runs), reverse=True)
    length = lengths[min(4, len(lengths) - 1)]
    return [run for run in runs if len(run.hypervolumes) >= length], length


def problem_table(samplers: Mapping[str, Sequence[Run]], front: float) -> str:
    """Seconds are of the machine that made most of the runs; a star where a sampler never ran there."""
    usual_machine = Counter(run.machine for runs in samplers.values() for run in runs).most_common(1)[0][0]
    lines = [
        "| sampler | seeds | "
        + " | ".join(f"at {n}" for n in HORIZONS)
        + f" | to reach {RIVAL} at 300 | of the best 24, at 60 | s per ask |",
        "| --- " * (len(HORIZONS) + 5) + "|",
    ]
    target = np.median(at(samplers.get(RIVAL, []), RIVAL_EVALUATIONS) or [float("nan")])
    best = {n: max((np.median(at(runs, n)) for runs in samplers.values() if at(runs, n)), default=0) for n in HORIZONS}
    for name, runs in sorted(samplers.items(), key=lambda entry: -np.median(at(entry[1], 30) or [0.0])):
        cells = []
        for n in HORIZONS:
            values = at(runs, n)
            if not values:
                cells.append("")
                continue
            median, low, high = median_interval(values)
            shown = f"**{median:.3f}**" if median == best[n] else f"{median:.3f}"
            seeds = f", {len(values)} seeds" if len(values) < len(runs) else ""
            cells.append(f"{shown} ({low:.3f} to {high:.3f}{seeds})")
        longest, length = longest_runs(runs)
        reached = float(np.median([evaluations_to(run, float(target)) for run in longest]))
        needed = f"{reached:.0f}" if np.isfinite(reached) else ("" if np.isnan(target) else f"over {length}")
        there = [run for run in runs if run.machine == usual_machine]
        seconds = np.median([second for run in there or runs for second in run.ask_seconds])
        elsewhere = "" if there else "*"
        share = f"{np.median(at(runs, 60)) / front:.0%}" if at(runs, 60) and np.isfinite(front) else ""
        lines.append(
            f"| {name} | {len(runs)} | " + " | ".join(cells) + f" | {needed} | {share} | {seconds:.3f}{elsewhere} |"
        )
    return "\n".join(lines)


def summary_table(problems: Grouped, horizons: Sequence[int] = (30, 60)) -> str:
    """For every problem: ours, and the best peer with its name."""
    header = "| problem | " + " | ".join(f"{OURS} at {n} | best peer at {n}" for n in horizons) + " |"
    lines = [header, "| --- " * (2 * len(horizons) + 1) + "|"]
    for problem, samplers in problems.items():
        cells = []
        for n in horizons:
            ours = at(samplers.get(OURS, []), n)
            peers = {
                name: float(np.median(at(runs, n)))
                for name, runs in samplers.items()
                if not name.startswith("MM-MO") and at(runs, n)
            }
            if not ours or not peers:
                cells += ["", ""]
                continue
            best = max(peers, key=lambda name: peers[name])
            median = float(np.median(ours))
            mark = "**" if median > peers[best] else ""
            cells += [f"{mark}{median:.3f}{mark}", f"{peers[best]:.3f} ({best})"]
        lines.append(f"| {problem} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def paired_table(problems: Grouped, horizons: Sequence[int] = (30, 60)) -> str:
    """Ours against the strongest peers, run by run of the same networks and seed: how often ours is higher, and the
    mean of the differences in percent of the peer's with its standard error. Other networks of a problem are one row;
    where a peer has nothing there is no percentage, and no pair.
    """
    found: dict[tuple[str, str], list[tuple[Run, Run]]] = defaultdict(list)
    for problem, samplers in problems.items():
        family, _, _ = problem.partition(NETWORK)
        ours = {run.seed: run for run in samplers.get(OURS, [])}
        for name in STRONGEST:
            found[family, name] += [(ours[run.seed], run) for run in samplers.get(name, []) if run.seed in ours]
    reached = max(
        (min(len(a.hypervolumes), len(b.hypervolumes)) for pairs in found.values() for a, b in pairs), default=0
    )
    horizons = [n for n in horizons if n <= reached]
    header = "| problem | peer |" + "".join(f" higher at {n} | difference at {n} |" for n in horizons)
    lines = [header, "| --- " * (2 + 2 * len(horizons)) + "|"]
    for (family, name), pairs in found.items():
        if not pairs:
            continue
        cells = []
        for n in horizons:
            both = [(at([a], n), at([b], n)) for a, b in pairs]
            changes = [100 * (ours[0] / theirs[0] - 1) for ours, theirs in both if ours and theirs and theirs[0] > 0]
            if not changes:
                cells += ["", ""]
                continue
            error = f" ± {np.std(changes, ddof=1) / len(changes) ** 0.5:.1f}" if len(changes) > 1 else ""
            cells += [f"{sum(c > 0 for c in changes)} of {len(changes)}", f"{np.mean(changes):+.1f}%{error}"]
        lines.append(f"| {family} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def front_table(problems: Grouped, evaluations: int) -> str:
    """Medians of ours and of the peers of the first page, with the seeds of each where they are fewer than ours; ours
    run by run against the best peer of at least ``FEWEST_RANKED`` seeds; and our worst seed, and that peer's own,
    against that peer's median."""
    names = [OURS, *PEERS_SHOWN]
    header = [f"at {evaluations} evaluations", *names, "against the best peer", "worst seed (the peer's)"]
    lines = [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for problem, samplers in problems.items():
        ours = at(samplers.get(OURS, []), evaluations)
        values = {name: found for name in names if (found := at(samplers.get(name, []), evaluations))}
        if not ours:
            continue
        medians = {name: float(np.median(found)) for name, found in values.items()}
        ranked = [name for name in medians if name == OURS or len(values[name]) >= FEWEST_RANKED]
        if len(ranked) < 2:
            continue
        highest = max(medians[name] for name in ranked)
        cells = []
        for name in names:
            shown = f"{medians[name]:.3f}" if name in medians else ""
            seeds = f" ({len(values[name])})" if name in medians and len(values[name]) != len(ours) else ""
            is_best = name in ranked and medians[name] == highest
            cells.append(f"**{shown}**{seeds}" if is_best else shown + seeds)
        best = max((name for name in ranked if name != OURS), key=lambda name: medians[name])
        changes = differences(samplers, best, evaluations)
        error = f" ± {np.std(changes, ddof=1) / len(changes) ** 0.5:.1f}" if len(changes) > 1 else ""
        against = f"{np.mean(changes):+.1f}%{error}" if changes else ""
        lowest, its_own = (f"{100 * (min(found) / medians[best] - 1):+.1f}%" for found in (ours, values[best]))
        worst = f"{lowest} ({its_own})"
        count = f"{len(ours)} seed" + "s" * (len(ours) > 1)
        lines.append(f"| {problem} ({count}) | " + " | ".join([*cells, against, worst]) + " |")
    return "\n".join(lines)


def differences(samplers: Mapping[str, Sequence[Run]], peer: str, evaluations: int) -> list[float]:
    """By how many percent ours is above a peer, seed by seed."""
    ours, theirs = ({run.seed: run for run in samplers.get(name, [])} for name in (OURS, peer))
    pairs = [(at([ours[seed]], evaluations), at([theirs[seed]], evaluations)) for seed in sorted(ours.keys() & theirs)]
    return [100 * (mine[0] / other[0] - 1) for mine, other in pairs if mine and other and other[0] > 0]


def write_tables(runs: Sequence[Run], fronts: Mapping[str, float], pages: Path) -> None:
    """The tables between their marks in the pages of a folder that hold them, and one picture of all problems."""
    found = grouped(runs)
    problems = {name: found[name] for name in fronts if name in found}
    every = [f"## {problem}\n\n{problem_table(samplers, fronts[problem])}" for problem, samplers in problems.items()]
    others = {name: found[name] for name in sorted(found) if NETWORK in name}
    models = {name: samplers for name, samplers in problems.items() if name.startswith(LANGUAGE_MODELS)}
    tables = {
        "search.md": {"language models": "\n\n".join(front_table(models, n) for n in (15, 30, 60))},
        "search-method.md": {"summary": summary_table(problems), "seed by seed": paired_table(problems)},
        "search-pieces.md": {"other networks": paired_table(others)},
        "search-problems.md": {"every problem": "\n\n".join(every)},
    }
    for page, contents in tables.items():
        text = (pages / page).read_text(encoding="utf-8")
        for mark, content in contents.items():
            text = between_marks(text, mark, content)
        (pages / page).write_text(text, encoding="utf-8")
    plot(problems, pages / "search.png")
    plot_bands(models, pages / "search-language-models.png")
    print(f"{', '.join(tables)} and two pictures in {pages}")


def between_marks(text: str, name: str, content: str) -> str:
    """The text with ``content`` in the place of what stands between the two comments of that name."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not found or not ended:
        raise ValueError(f"the document needs the lines {first} and {last}")
    return f"{before}{first}\n\n{content}\n\n{last}{after}"


def plot(problems: Grouped, path: Path) -> None:
    """Median hypervolume against evaluations, a panel a problem; a line ends where fewer than five runs go on, and is
    of those that get there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {name for samplers in problems.values() for name in samplers if name in DRAWN or not name.startswith(OURS)}
    names = sorted(shown, key=lambda name: (name != OURS, name))
    colours = dict(zip(names, [one for m in ("tab10", "Dark2") for one in pyplot.get_cmap(m).colors], strict=False))
    columns = 3
    rows = -(-len(problems) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 3.6 * rows), squeeze=False)
    for axis, (problem, samplers) in zip(axes.flat, problems.items(), strict=False):
        for name in names:
            if name not in samplers:
                continue
            longest, length = longest_runs(samplers[name])
            length = min(length, HORIZONS[-1])
            curve = np.median([run.hypervolumes[:length] for run in longest], axis=0)
            axis.plot(
                range(1, length + 1), curve, label=name, color=colours[name],
                linewidth=2.6 if name == OURS else 1.2, zorder=3 if name == OURS else 2,
            )  # fmt: skip
        axis.set_title(problem, fontsize=10)
        axis.set_xlabel("evaluations")
        axis.set_ylabel("normalised hypervolume")
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(problems) :]:
        axis.axis("off")
    handles = [pyplot.Line2D([], [], color=colours[name], label=name) for name in names]
    figure.legend(handles=handles, loc="lower center", ncol=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def plot_bands(problems: Grouped, path: Path) -> None:
    """Median hypervolume against evaluations of the samplers of the first page, with a band from the lower to the upper
    quartile; a panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = (OURS, *PEERS_SHOWN)
    columns = 3
    rows = -(-len(problems) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.4 * columns, 3.1 * rows), squeeze=False)
    for axis, (problem, samplers) in zip(axes.flat, problems.items(), strict=False):
        for place, name in enumerate(names):
            if name not in samplers:
                continue
            longest, length = longest_runs(samplers[name])
            length = min(length, 60)
            low, middle, high = np.quantile([run.hypervolumes[:length] for run in longest], [0.25, 0.5, 0.75], axis=0)
            counted = range(1, length + 1)
            colour = f"C{place}" if name != "random" else "0.6"
            width = 2.4 if name == OURS else 1.2
            axis.plot(counted, middle, label=name, color=colour, linewidth=width, zorder=3 if name == OURS else 2)
            axis.fill_between(counted, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(problem, fontsize=9)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.set_xlim(5, None)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("normalised hypervolume", fontsize=8)
    for axis in list(axes.flat)[len(problems) :]:
        axis.axis("off")
    # A name in the legend has a line somewhere.
    handles = [
        pyplot.Line2D([], [], color=f"C{place}" if name != "random" else "0.6", label=name)
        for place, name in enumerate(names)
        if any(name in samplers for samplers in problems.values())
    ]
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
