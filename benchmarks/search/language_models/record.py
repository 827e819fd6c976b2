"""What language-model problems are, measured: ``python -m benchmarks.search.language_models.record ...``

keeps SET ...              what each expert and the uniform average score
grid NAME                  all nodes of a problem's grid, then its file (a second of a core a node; goes on where
                           it was stopped)
check NAME [--points 12]   how far interpolated scores are from measured ones, at random points
pack                       all live evaluations that are only here go to the files that are committed
"""

from __future__ import annotations

import argparse
import datetime
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.search.language_models.measured import Measured
from benchmarks.search.language_models.problems import ADDED, SKILL_MERGES, SkillMerges
from benchmarks.search.language_models.train_experts import PLANS
from benchmarks.search.recorded_landscape import RecordedLandscape

HERE = Path("benchmarks/search/results/live")


def _weights(merges: SkillMerges, weights: tuple[float, ...]) -> dict[str, float]:
    return {f"weight[{skill}]": weight for skill, weight in zip(merges.skills, weights, strict=True)}


def keeps(name: str) -> None:
    """Print the scores of base, experts and average, and what the average keeps of each expert's own skill."""
    merges = SkillMerges(name, ADDED)
    experts, space, count = merges.live(HERE), merges.merge_space(), len(merges.skills)
    scores = []
    for label, weights in zip(
        ("base", *merges.skills, "average"), (np.zeros(count), *np.eye(count), np.full(count, 1 / count)), strict=True
    ):
        reading = experts.reading(space.recipe(_weights(merges, tuple(map(float, weights)))))
        scores.append((reading.margins.reshape(count, -1) > 0).mean(1))
        losses = reading.losses.astype(float).reshape(count, -1).mean(1)
        print(f"{label:12}", scores[-1].round(3), "loss", losses.round(3), flush=True)
    print("kept", (scores[-1] / np.diag(np.array(scores[1:-1]))).round(2))


def grid(name: str) -> None:
    merges = SKILL_MERGES[name]
    plan = PLANS[merges.experts]
    experts, space = merges.live(HERE), merges.merge_space()
    found = []
    for weights in product(merges.nodes, repeat=len(merges.skills)):
        started = time.process_time()
        found.append(experts.reading(space.recipe(_weights(merges, weights))))
        right = (found[-1].margins.reshape(len(merges.skills), -1) > 0).mean(1)
        print(*weights, "|", *right.round(2), f"| {time.process_time() - started:.1f} s", flush=True)
    shape = (*[len(merges.nodes)] * len(merges.skills), -1)
    header = {
        "what": "margins in logits of the skills' items (above 0: exact match) and losses of their answers",
        "items": f"the {merges.split} items",
        "model": f"{plan.base.name} with the {plan.kind.name} {', '.join(merges.skills)}, float32",
        "made by": f"python -m benchmarks.search.language_models.record grid '{name}'",
        "date": datetime.date.today().isoformat(),
        "versions": {package: version(package) for package in ("torch", "transformers")},
    }
    margins, losses = (np.array([getattr(one, what) for one in found]).reshape(shape) for what in ("margins", "losses"))
    merges.landscape.parent.mkdir(exist_ok=True)
    RecordedLandscape(dict.fromkeys(merges.skills, merges.nodes), merges.items, margins, header, losses).save(
        merges.landscape
    )


def check(name: str, points: int) -> None:
    merges = SKILL_MERGES[name]
    experts, space = merges.live(HERE), merges.merge_space()
    landscape = RecordedLandscape.read(merges.landscape)
    away = []
    for weights in np.random.default_rng(0).uniform(0, 1, (points, len(merges.skills))):
        reading = experts.reading(space.recipe(_weights(merges, tuple(map(float, weights)))))
        measured = (reading.margins.reshape(len(merges.skills), -1) > 0).mean(1)
        between = np.array(list(landscape.scores(dict(zip(merges.skills, map(float, weights), strict=True))).values()))
        away.append(between - measured)
        print(weights.round(3), "interpolated", between.round(3), "measured", measured.round(3), flush=True)
    error = np.array(away)
    print(
        "rms",
        np.sqrt((error**2).mean(0)).round(4),
        "mean",
        error.mean().round(4),
        "largest",
        np.abs(error).max().round(3),
    )


def pack(folder: Path = HERE) -> None:
    for experts in sorted({merges.experts for merges in SKILL_MERGES.values() if not merges.grid}):
        measured = Measured(experts, folder)
        measured.record()
        print(measured.recorded, len(measured.found))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search.language_models.record", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", choices=["keeps", "grid", "check", "pack"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--points", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "pack":
        pack()
    for name in arguments.names:
        if arguments.what == "keeps":
            keeps(name)
        elif arguments.what == "grid":
            grid(name)
        else:
            check(name, arguments.points)


if __name__ == "__main__":
    main()
