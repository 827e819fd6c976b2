"""Seconds per proposal at 60 finished trials of 12 parameters and 3 objectives, each sampler in a process of its own.

``python -m benchmarks.search.ask_speed [SAMPLER ...]`` prints a Markdown table: the first ask of a process, imports
apart, and the median of the following ones, for a merge of each kind. What a proposal costs grows with the front, so
about half of the trials are on it, as in real searches (21 and 33 of 60 on the live problems).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from benchmarks.search.language_models.problems import BLOCKS

SAMPLERS = ("MM-MO", "MM-MO quality", "MM-MO botorch", "Optuna GP", "BoTorch qLogNEHVI", "TPE multivariate")
TRIALS, ASKS = 60, 6
SPACES: Mapping[str, tuple[int, Mapping[str, Any]]] = {
    "ties of 6": (6, {"method": "ties", "parameters": {"weight": [0, 1], "density": [0.1, 1]}}),
    "4 blocks of 3": (3, BLOCKS),
}
"""Of 12 parameters each: how many experts, and the rest of the space."""


def measure(name: str, kind: str) -> dict[str, float]:
    import numpy as np
    import optuna
    import torch

    from benchmarks.search.peers import AfterStartup
    from mergefront.optimizer.recipes.space import MergeSpace
    from mergefront.optimizer.samplers.registry import make_sampler
    from mergefront.optimizer.scores.objectives import Objective

    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    experts, settings = SPACES[kind]
    space = MergeSpace([f"expert{i}" for i in range(experts)], base_model="base", **settings)
    distributions = space.distributions()
    objectives = tuple(Objective(name) for name in ("a", "b", "c"))
    centres = np.random.default_rng(1).random((3, 12))

    class Plain:
        """What ``AfterStartup`` needs of a problem."""

        def __init__(self) -> None:
            from mergefront.optimizer.scores.objectives import Normaliser

            self.space, self.objectives = space, objectives
            self.normaliser = Normaliser.from_anchors(objectives, [[-2.0] * 3, [0.0] * 3])

    makers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "BoTorch qLogNEHVI": lambda: AfterStartup("botorch_peer.propose", Plain(), 0),  # type: ignore[arg-type]
    }
    options = {"MM-MO quality": {"budget": "quality"}, "MM-MO botorch": {"budget": "botorch"}}
    registered = {"Optuna GP": "gp", "TPE multivariate": "tpe-multivariate"}
    make = makers.get(
        name,
        lambda: make_sampler(
            registered.get(name, "mm-mo"),
            seed=0,
            search_space=distributions,
            objectives=objectives,
            options=options.get(name, {}),
            **({} if name in registered else {"rule": space.merge_rule}),
        ),
    )
    study = optuna.create_study(directions=["maximize"] * 3, sampler=make())
    rng = np.random.default_rng(0)
    for number in range(TRIALS):
        # The best trade-offs of these objectives lie between their centres.
        near_front = rng.dirichlet(np.ones(3)) @ centres + rng.normal(0.0, 0.02, 12)
        x = np.round(np.clip(near_front, 0, 1) if number % 2 else rng.random(12), 4)
        params = {
            key: float(d.low + u * (d.high - d.low)) for (key, d), u in zip(distributions.items(), x, strict=True)
        }
        values = [-float(((x - centre) ** 2).sum()) for centre in centres]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=values))
    seconds = []
    for _ in range(ASKS):
        started = time.perf_counter()
        trial = study.ask(distributions)
        seconds.append(time.perf_counter() - started)
        x = np.array([trial.params[key] for key in distributions])
        study.tell(trial, [-float(((x - centre) ** 2).sum()) for centre in centres])
    return {"first": seconds[0], "median": median(seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.ask_speed", description=__doc__)
    parser.add_argument("samplers", nargs="*", default=SAMPLERS, help="all without")
    parser.add_argument("--measure", nargs=2, metavar=("SAMPLER", "SPACE"), help="one sampler in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    print("| sampler | " + " | ".join(f"{kind}: first ask, s | the next, s" for kind in SPACES) + " |")
    print("| --- " * (1 + 2 * len(SPACES)) + "|")
    for name in arguments.samplers:
        cells = []
        for kind in SPACES:
            answer = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "benchmarks.search.ask_speed", "--measure", name, kind],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            numbers = json.loads(answer.stdout.splitlines()[-1])
            cells += [f"{numbers['first']:.2f}", f"{numbers['median']:.2f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
