"""``python -m benchmarks.search run`` makes the runs that are missing, ``record`` keeps them, ``tables`` says in
the documentation what they say, ``all`` does the three one after the other.

Runs go to a folder that is not committed, one line each as soon as it is finished; recorded ones count as made.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from benchmarks.search.language_models.record import pack
from benchmarks.search.peers import PEERS
from benchmarks.search.problems import PROBLEMS, on_other_networks
from benchmarks.search.runs import append, read, read_all, record, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("what", choices=["all", "run", "record", "tables"])
    parser.add_argument("--folder", type=Path, default=Path("benchmarks/search/results"))
    parser.add_argument("--pages", type=Path, default=Path("docs/benchmarks"), help="folder of the pages with tables")
    parser.add_argument("--problems", nargs="*", default=[], help="names, or substrings of names; all without")
    parser.add_argument("--samplers", nargs="*", default=[], help="exact names; all without")
    parser.add_argument("--networks", nargs="*", type=int, default=[0], help="seeds of the networks; 0 is the tables'")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, help="at most that many; each sampler's own limit without")
    parser.add_argument("--again", action="store_true", help="make recorded runs anew, as a changed sampler needs")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after that")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    results = arguments.folder / "runs.jsonl"
    if arguments.what in ("all", "run"):
        make_runs(arguments, results)
    if arguments.what in ("all", "record"):
        record(read_all(results))
        pack(arguments.folder / "live")
    if arguments.what in ("all", "tables"):
        from benchmarks.search.known_front import known
        from benchmarks.search.tables import write_tables

        runs = read_all(results)
        shown = [name for name in PROBLEMS if name in {finished.problem for finished in runs}]
        fronts = {name: known(name, partial(PROBLEMS[name], arguments.folder / "pools")) for name in shown}
        write_tables(runs, fronts, arguments.pages)


def make_runs(arguments: argparse.Namespace, results: Path) -> None:
    """Those that are missing, appended to ``results``."""
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    offered = {
        name: make
        for seed in arguments.networks
        for name, make in (on_other_networks(seed) if seed else PROBLEMS).items()
    }
    asked = arguments.problems or [""]
    problems = [name for name in offered if any(name == p or (p not in offered and p in name) for p in asked)]
    samplers = arguments.samplers or list(PEERS)
    made = {name: offered[name](arguments.folder / "pools") for name in problems}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for problem in problems:
            for sampler in samplers:
                peer = PEERS[sampler]
                if not peer.takes(made[problem]):
                    continue
                evaluations = min(peer.evaluations, arguments.evaluations or peer.evaluations)
                made_before = read(results) if arguments.again else read_all(results)
                done = {(r.problem, r.sampler, r.seed) for r in made_before if len(r.hypervolumes) >= evaluations}
                if (problem, sampler, seed) in done:
                    continue
                if time.monotonic() - started > 60 * arguments.minutes:
                    return
                finished = run(
                    made[problem], peer.make(made[problem], seed), sampler, seed, evaluations,
                    anchors=peer.anchors, workers=peer.workers, constraints=peer.constraints,
                )  # fmt: skip
                append(results, finished)
                marks = " ".join(
                    f"{n}:{finished.hypervolumes[n - 1]:.4f}" for n in (15, 30, 60, 120) if n <= evaluations
                )
                print(f"{problem} | {sampler} | {seed} | {marks} | ask {sum(finished.ask_seconds):.1f} s", flush=True)


if __name__ == "__main__":
    main()
