"""Do gains fall as 1/k with the number of merged experts, and which methods gain at all? Eight LoRAs of SmolLM2-135M.

python -m benchmarks.number_of_experts                 # what was measured; what is not there is measured first
python -m benchmarks.number_of_experts --write FOLDER  # the same comparison as a study file for `mergefront compare`

The merges are those of `mergefront compare FOLDER/study.yaml --methods ... --subsets 48`: methods at their published
coefficients over random subsets of the experts. Scores are of all eight skills, whoever is merged. The law
L(k) = floor + A / (k + b) is that of arXiv 2509.24244. A merge takes two seconds of a core by the upper layers alone
(benchmarks/search/language_models); the LoRAs are trained in four minutes where they are missing.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from benchmarks.search.language_models.live import Experts
from benchmarks.search.language_models.measured import Measured, Reading
from benchmarks.search.language_models.skills import search_items
from benchmarks.search.language_models.train_experts import BASE, PLANS, trained
from mergefront.optimizer.recipes.anchors import BASE as OF_BASE
from mergefront.optimizer.recipes.anchors import anchors, expert_anchor
from mergefront.optimizer.recipes.published import of_subsets
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.comparison import mean_interval

NAME, SUBSETS, ITEMS, DRAWS = "eight", 48, 25, 1000
METHODS = ("task_arithmetic", "ties", "dare_ties", "tsv_m")
RECORDED = f"{NAME}-{ITEMS}-items"
"""Searches of these experts ask more items of a merge, so that their readings are others."""
Array = NDArray[np.float64]
ByLabel = Mapping[str, Sequence[tuple[tuple[str, ...], Reading]]]


def measured() -> tuple[dict[str, Reading], dict[str, list[tuple[tuple[str, ...], Reading]]]]:
    """The base and each expert by name, and by the label of a method its merges with their subsets."""
    skills = PLANS[NAME].skills
    readings = Measured(RECORDED, Path("benchmarks/search/results/live"))
    experts = Experts(NAME, readings, most_items=ITEMS)
    space = MergeSpace(list(skills), base_model="base", method="task_arithmetic", parameters={"weight": [0, 1]})
    wanted = {OF_BASE, *map(expert_anchor, skills)}
    alone = {one.name: experts.reading(one.recipe) for one in anchors(space) if one.name in wanted}
    merges = defaultdict(list)
    for one in of_subsets(space, METHODS, SUBSETS):
        assert one.subset is not None
        merges[one.label].append((one.subset, experts.reading(one.recipe)))
    readings.record()
    return alone, dict(merges)


def loss(reading: Reading) -> float:
    return float(reading.losses.astype(float).mean())


def right(reading: Reading) -> float:
    return float((reading.margins > 0).mean())


def law(k: Array, floor: float, a: float, b: float) -> Array:
    return np.asarray(floor + a / (k + b))


def fitted(k: Array, losses: Array) -> tuple[Array, float]:
    """Floor, A and b of the law by least squares, and the share of the variance of the means by k that it explains."""
    found, _ = curve_fit(law, k, losses, p0=(losses.min(), 1.0, 0.5), bounds=([0, 0, 0], [20, 100, 20]))
    sizes = np.unique(k)
    means = np.array([losses[k == size].mean() for size in sizes])
    left = means - law(sizes, *found)
    return found, float(1 - (left**2).sum() / ((means - means.mean()) ** 2).sum())


def intervals(k: Array, losses: Array) -> Array:
    """95 % intervals of the law's three numbers: subsets are drawn anew within each k."""
    rng, drawn = np.random.default_rng(0), []
    places = [np.flatnonzero(k == size) for size in np.unique(k)]
    for _ in range(DRAWS):
        chosen = np.concatenate([rng.choice(own, len(own)) for own in places])
        try:
            drawn.append(fitted(k[chosen], losses[chosen])[0])
        except RuntimeError:  # no fit found
            continue
    return np.quantile(np.array(drawn), [0.025, 0.975], axis=0)


def show(alone: Mapping[str, Reading], merges: ByLabel) -> None:
    base = alone[OF_BASE]
    singles = [reading for name, reading in alone.items() if name != OF_BASE]
    print(f"base: loss {loss(base):.3f}, right {right(base):.3f}")
    for name, reading in alone.items():
        print(f"  {name}: loss {loss(reading):.3f}, right {right(reading):.3f}")
    for label, made in merges.items():
        k = np.array([1.0] * len(singles) + [len(subset) for subset, _ in made])
        losses = np.array([*map(loss, singles), *(loss(reading) for _, reading in made)])
        shares = np.array([*map(right, singles), *(right(reading) for _, reading in made)])
        wins = [float(loss(reading) < loss(base)) for _, reading in made]
        best = [loss(one) < min(loss(alone[expert_anchor(name)]) for name in subset) for subset, one in made]
        low, high = mean_interval(wins)
        print(f"\n{label}: below the base's loss in {sum(wins):.0f} of {len(wins)} ({low:.2f} to {high:.2f}), "
              f"below the best expert's of the subset in {sum(best)}")  # fmt: skip
        for size in np.unique(k):
            own = losses[k == size]
            error = own.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else float("nan")
            print(
                f"  k {size:.0f}, {len(own)}: loss {own.mean():.3f} ± {error:.3f}, right {shares[k == size].mean():.3f}"
            )
        (floor, a, b), explained = fitted(k, losses)
        (floor_low, a_low, b_low), (floor_high, a_high, b_high) = intervals(k, losses)
        print(f"  floor {floor:.3f} ({floor_low:.3f} to {floor_high:.3f}), A {a:.2f} ({a_low:.2f} to {a_high:.2f}), "
              f"b {b:.2f} ({b_low:.2f} to {b_high:.2f}); explains {explained:.3f} of the means' variance")  # fmt: skip


def write(folder: Path) -> None:
    """The comparison as a study file, JSON being YAML, and its items."""
    folder.mkdir(parents=True, exist_ok=True)
    loras, skills = trained(NAME), PLANS[NAME].skills
    for skill in skills:
        lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in search_items(skill)[:ITEMS]]
        (folder / f"{skill}.jsonl").write_text("".join(lines), encoding="utf-8")
    made = {
        "study": "number of experts",
        "merge": {
            "method": "task_arithmetic",
            "base_model": str(BASE.resolve()),
            "models": {skill: str(loras / skill) for skill in skills},
            "space": {"weight": [0, 1]},
        },
        "backend": {"type": "local", "dtype": "float32"},
        "tasks": {
            skill: {"type": "jsonl", "path": f"{skill}.jsonl", "metric": "loss", "report_fraction": 0}
            for skill in skills
        },
        "objectives": list(skills),
    }
    (folder / "study.yaml").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write the study file and its items")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.write is not None:
        write(given.write)
    else:
        show(*measured())


if __name__ == "__main__":
    main()
