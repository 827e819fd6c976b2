"""What start points are worth: ``python -m benchmarks.search.start_points weights`` finds them for the LoRAs of
SmolLM2-135M (two minutes of a core for each three), ``scores`` says what each scores on the recorded landscape, and
``search [SEEDS [NAMES]]`` searches with and without them (the base model: ``python examples/smollm/make_base.py``)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.search.problem import Problem
from benchmarks.search.problems import SMOLLM
from benchmarks.search.record_smollm import BASE, ITEMS
from benchmarks.search.runs import run
from mergefront.adapters.language_model import GenerationRequest
from mergefront.optimizer.recipes.anchors import anchors, start_point
from mergefront.optimizer.recipes.space import MergeSpace
from mergefront.optimizer.samplers.mmmo.sampler import MMMOSampler

KEPT = Path(__file__).with_name("start-points.json")
WIDTH = 0.4
"""Of a range around a start point."""


def found(name: str) -> dict[str, dict[str, float]]:
    """Every start point of one problem's LoRAs, and the processor seconds that it took under "seconds"."""
    import torch

    from mergefront.adapters.local.backend import LocalBackend
    from mergefront.adapters.merging.importance import inverse_norm_weights, task_vector_norms
    from mergefront.adapters.starting.alignment import Aligner, AlignmentSettings
    from mergefront.adapters.starting.posterior import mean_posterior, texts_of
    from mergefront.adapters.tasks.jsonl import JsonlTask

    torch.set_num_threads(1)
    loras = SMOLLM[name]
    folders = {skill: loras.folder / "loras" / skill for skill in loras.skills}
    space = MergeSpace(list(folders), base_model="base", method="task_arithmetic", parameters={"weight": [0, 1]})
    clock, seconds = time.process_time(), {}
    made = {"inverse-norm": inverse_norm_weights(task_vector_norms(BASE, folders))}
    seconds["inverse-norm"], clock = time.process_time() - clock, time.process_time()
    backend = LocalBackend.from_checkpoints(BASE, folders, device="cpu", dtype="float32")
    tasks = {
        skill: JsonlTask.read(
            skill, f"{skill}_search.jsonl", "exact_match", folder=loras.folder / "data",
            report_fraction=0.0, max_new_tokens=16, stop="\n", search_items=ITEMS,
        )
        for skill in loras.skills
    }  # fmt: skip
    clock = time.process_time()
    told = {}
    for skill in folders:
        alone = {f"weight[{other}]": float(other == skill) for other in folders}
        with backend.apply(space.make("task_arithmetic", alone)) as model:
            told[skill] = [[one.logprob for one in model.loglikelihood(texts_of(task))] for task in tasks.values()]
    made["posterior-weighted"] = mean_posterior(told)
    seconds["posterior-weighted"], clock = time.process_time() - clock, time.process_time()
    aligner = Aligner(backend, space, AlignmentSettings())
    lessons = []
    for skill, task in tasks.items():
        asked = task.questions(task.items("search")[:8])
        lessons.append(aligner.lesson(skill, [GenerationRequest(one.prompt, 16, one.stop) for one in asked]))
    learned = aligner.learn(lessons)
    made["aligned"] = {skill: learned[f"weight[{skill}]"] for skill in folders}
    seconds["aligned"] = time.process_time() - clock
    return {**made, "seconds": seconds}


def scores(problem: Problem, weights: Mapping[str, float]) -> list[float]:
    """Of a sum of task vectors."""
    recipe = problem.space.make("task_arithmetic", {f"weight[{name}]": value for name, value in weights.items()})
    return list(problem.evaluate(recipe, 0, 0).true)


def with_start(problem: Problem, name: str, weights: Mapping[str, float]) -> Problem:
    """The problem with one more recipe after its anchors, whose hypervolume is in the unit of the anchors alone."""
    given = start_point(problem.space, name, {f"weight[{one}]": value for one, value in weights.items()})
    made = replace(problem, anchors=(*problem.anchors, given))
    made.normaliser = problem.normaliser
    return made


def around(problem: Problem, weights: Mapping[str, float]) -> Problem:
    """The problem with ranges of ``WIDTH`` around the weights, as far as the landscape was recorded."""
    rules = {f"weight[{n}]": [max(0.0, v - WIDTH / 2), min(1.0, v + WIDTH / 2)] for n, v in weights.items()}
    space = MergeSpace(list(weights), base_model="base", method="task_arithmetic", parameters=rules)
    made = replace(problem, space=space, anchors=tuple(anchors(space)))
    made.normaliser = problem.normaliser
    return made


def main() -> None:
    if sys.argv[1] == "weights":
        KEPT.write_text(json.dumps({name: found(name) for name in SMOLLM}, indent=1) + "\n")
        return
    kept = json.loads(KEPT.read_text())
    for name, loras in ((name, SMOLLM[name]) for name in kept):
        problem, start = loras.made(name, Path()), {k: v for k, v in kept[name].items() if k != "seconds"}
        if sys.argv[1] == "scores":
            even = {f"task arithmetic {w:.2f}": dict.fromkeys(loras.skills, w) for w in (1 / 3, 0.3)}
            alone = {f"expert {s}": {o: float(o == s) for o in loras.skills} for s in loras.skills}
            for label, weights in {**alone, **even, **start}.items():
                print(f"{name} | {label} | {', '.join(f'{100 * one:.0f}' for one in scores(problem, weights))}")
            continue
        seeds = range(int(sys.argv[2]) if len(sys.argv) > 2 else 5)
        variants = {"none": problem, **{label: with_start(problem, label, w) for label, w in start.items()}}
        variants["around aligned"] = with_start(around(problem, start["aligned"]), "aligned", start["aligned"])
        for label in sys.argv[3:] or variants:
            variant = variants[label]
            sampler = partial(MMMOSampler, rule=variant.space.merge_rule, trend="none")
            runs = [run(variant, sampler(seed=s), label, s, 30).hypervolumes for s in seeds]
            at = [[one[horizon - 1] for one in runs] for horizon in (15, 30)]
            told = " | ".join(f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in at)
            print(f"{name} | {label} | {told}", flush=True)


if __name__ == "__main__":
    main()
