"""Measure a landscape of LoRAs of SmolLM2: ``python -m benchmarks.search.record_smollm NAME`` (20 minutes of a core).

NAME is the problem's, such as "SmolLM2-135M, three LoRAs". At every node of a grid over the weights of its LoRAs (task
arithmetic) the merge is made in the loaded model and asked for the first search items of each skill. Nodes that are
measured are kept at once, so that a run that was stopped goes on. ``--check N`` measures N random points between the
nodes, and N among those with the best interpolated scores, without interpolation, and a third of them with answers
that are really generated. ``--average`` only says what the uniform average keeps of each expert's score. The base model
must have been made: ``python examples/smollm/make_base.py``.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.search.answer_margins import answer_margins, end_tokens, references
from benchmarks.search.problems import SMOLLM, RecordedLoras
from benchmarks.search.recorded_landscape import RecordedLandscape
from mergefront.adapters.local.backend import LocalBackend
from mergefront.adapters.tasks.jsonl import JsonlTask
from mergefront.optimizer.recipes.recipe import Recipe
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.scores.pareto import nondominated

BASE = Path("examples/smollm/base")
ITEMS = 40
NODES = tuple(round(0.2 * step, 1) for step in range(6))
METHOD = "task_arithmetic"


class LiveMerges:
    """The LoRAs in one loaded model, and the items that they are asked."""

    def __init__(self, loras: RecordedLoras) -> None:
        self.skills = loras.skills
        self.backend = LocalBackend.from_checkpoints(
            BASE, {skill: loras.folder / "loras" / skill for skill in self.skills}, device="cpu", dtype="float32"
        )
        # Sentences of thirty tokens: a CPU's fused attention takes a fifth of the time, the plain one next to none.
        self.backend.model.set_attn_implementation("eager")
        self.space = MergeSpace(
            list(self.skills), base_model="base", method=METHOD, parameters={"weight": [NODES[0], NODES[-1]]}
        )
        self.tasks = {
            skill: JsonlTask.read(
                skill, f"{skill}_search.jsonl", "exact_match", folder=loras.folder / "data",
                report_fraction=0.0, max_new_tokens=16, stop="\n",
            )
            for skill in self.skills
        }  # fmt: skip
        self.items = {skill: list(task.items("search"))[:ITEMS] for skill, task in self.tasks.items()}
        with self.backend.apply(self._recipe(dict.fromkeys(self.skills, 0.0))) as model:
            self.asked = references(model.tokenizer, [item for items in self.items.values() for item in items])
            self.ends = end_tokens(model.tokenizer)

    def margins(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """Of all items, skill by skill."""
        with self.backend.apply(self._recipe(weights)) as model:
            return answer_margins(model.model, self.asked, self.ends)

    def generated(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """The items' exact matches, 1 or 0, as a study scores them."""
        with self.backend.apply(self._recipe(weights)) as model:
            scored = [self.tasks[skill].score(model, items).scores for skill, items in self.items.items()]
        return np.concatenate(scored)

    def _recipe(self, weights: Mapping[str, float]) -> Recipe:
        return self.space.recipe({f"weight[{skill}]": weights[skill] for skill in self.skills})


def keeps(live: LiveMerges) -> None:
    """Print the scores of each expert and of the average, and what the average keeps of each expert's own skill."""
    experts = np.eye(len(live.skills))
    scores = [
        (live.margins(dict(zip(live.skills, map(float, weights), strict=True))).reshape(-1, ITEMS) > 0).mean(1)
        for weights in (*experts, experts.mean(0))
    ]
    print(*live.skills, *[score.round(3) for score in scores], "kept", (scores[-1] / np.diag(scores)).round(2))


def record(live: LiveMerges, name: str, kept: Path) -> RecordedLandscape:
    """Every node; ``kept`` holds those measured so far (NaN elsewhere)."""
    skills = live.skills
    shape = (*[len(NODES)] * len(skills), ITEMS * len(skills))
    margins = np.load(kept) if kept.exists() else np.full(shape, np.nan)
    for node in np.ndindex(shape[:-1]):
        if np.isnan(margins[node]).any():
            started = time.process_time()
            weights = {skill: NODES[place] for skill, place in zip(skills, node, strict=True)}
            margins[node] = live.margins(weights)
            partial = kept.with_suffix(".partial.npy")
            np.save(partial, margins)
            partial.replace(kept)
            right = (margins[node].reshape(len(skills), ITEMS) > 0).mean(1)
            print(*weights.values(), "|", *right.round(2), f"| {time.process_time() - started:.1f} s", flush=True)
    header = {
        "what": "margins in logits of the skills' search items, by teacher forcing; above 0: exact match",
        "model": f"SmolLM2-135M-Instruct (GGUF Q4_1, dequantised) with the LoRAs {', '.join(skills)}, float32",
        "method": f"{METHOD}, one weight a LoRA",
        "made by": f"python -m benchmarks.search.record_smollm '{name}'",
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("torch", "transformers", "mergefront")},
    }
    items = {skill: tuple(item.id for item in items) for skill, items in live.items.items()}
    return RecordedLandscape(dict.fromkeys(skills, NODES), items, margins, header)


def check(live: LiveMerges, recorded: RecordedLandscape, count: int) -> None:
    """Print how far interpolated scores are from measured ones, and teacher forcing from generation."""
    skills = live.skills
    rng = np.random.default_rng(0)
    drawn = rng.uniform(NODES[0], NODES[-1], (2000, len(skills)))
    scores = np.array([list(recorded.scores(dict(zip(skills, point, strict=True))).values()) for point in drawn])
    best = drawn[nondominated(scores)]
    for name, points in (("random", drawn[:count]), ("near the front", rng.permutation(best)[:count])):
        away = []
        for number, point in enumerate(points):
            weights = dict(zip(skills, map(float, point), strict=True))
            right = np.concatenate(list(recorded.at(weights).values())) > 0, live.margins(weights) > 0
            means = [values.reshape(len(skills), ITEMS).mean(1) for values in right]
            away.append(means[0] - means[1])
            others = int((live.generated(weights) != right[1]).sum()) if number % 3 == 0 else "not asked"
            print(
                name, point.round(3), "interpolated, measured", *[mean.round(3) for mean in means],
                "| items whose generated answer says otherwise:", others, flush=True,
            )  # fmt: skip
        error = np.array(away)
        print(name, "rms of interpolated less measured", np.sqrt((error**2).mean(0)).round(4),
              "mean", error.mean(0).round(4), "largest", np.abs(error).max().round(2), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.record_smollm", description=__doc__)
    parser.add_argument("name", choices=SMOLLM, metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/search/results"))
    parser.add_argument("--check", type=int, metavar="N")
    parser.add_argument("--average", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    landscape = SMOLLM[arguments.name].landscape
    live = LiveMerges(SMOLLM[arguments.name])
    if arguments.average:
        keeps(live)
    elif arguments.check:
        check(live, RecordedLandscape.read(landscape), arguments.check)
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        record(live, arguments.name, arguments.folder / f"{landscape.stem}.npy").save(landscape)


if __name__ == "__main__":
    main()
